package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// BulkPut is one value of a bulk write.
type BulkPut struct {
	Key   string
	Value []byte
	// Metadata is JSON, nil when there is none.
	Metadata json.RawMessage
	// Expiration in unix seconds, 0 = never.
	Expiration int64
	// ExpirationTTL in seconds, 0 = none; it wins over Expiration.
	ExpirationTTL int64
}

// MarshalJSON gives the value as text where it is text.
func (p BulkPut) MarshalJSON() ([]byte, error) {
	doc := struct {
		Key        string          `json:"key"`
		Value      *string         `json:"value,omitempty"`
		Base64     *[]byte         `json:"value_base64,omitempty"`
		Metadata   json.RawMessage `json:"metadata,omitempty"`
		Expiration int64           `json:"expiration,omitempty"`
		TTL        int64           `json:"expiration_ttl,omitempty"`
	}{Key: p.Key, Metadata: p.Metadata, Expiration: p.Expiration, TTL: p.ExpirationTTL}
	if utf8.Valid(p.Value) {
		text := string(p.Value)
		doc.Value = &text
	} else {
		doc.Base64 = &p.Value
	}
	return marshalText(doc)
}

// bulkItem is the outcome of one item as a node names it.
type bulkItem struct {
	Key    string `json:"key"`
	Status int    `json:"status"`
	Error  *struct {
		Code    kv.Code `json:"code"`
		Message string  `json:"message"`
		Field   string  `json:"field"`
	} `json:"error"`
}

// BulkPut writes values in one call and returns the outcome of each, by position: nil, or an Error. When it fails as a
// whole, nothing is known of any of them beyond what the error says.
func (c *Client) BulkPut(ctx context.Context, ns string, puts []BulkPut) ([]error, error) {
	path, err := namespacePath("/v1/kv/", ns)
	if err != nil {
		return nil, err
	}
	doc, err := marshalText(struct {
		Put []BulkPut `json:"put"`
	}{puts})
	if err != nil {
		return nil, err
	}
	body := BytesBody(doc)
	var got struct {
		Put []bulkItem `json:"put"`
	}
	if err := c.readJSON(ctx, jsonCall(path, &body), &got); err != nil {
		return nil, err
	}
	if len(got.Put) != len(puts) {
		return nil, fmt.Errorf("%s named the outcome of %d values, %d were sent", c.base, len(got.Put), len(puts))
	}
	out := make([]error, len(puts))
	for i, it := range got.Put {
		switch {
		case it.Key != puts[i].Key && it.Error == nil:
			return nil, fmt.Errorf("%s named %q where %q was sent", c.base, it.Key, puts[i].Key)
		case it.Error != nil:
			out[i] = &Error{Status: it.Status, Code: it.Error.Code, Message: it.Error.Message, Field: it.Error.Field}
		case it.Status != http.StatusOK:
			out[i] = &Error{Status: it.Status, Message: "the node gave no reason"}
		}
	}
	return out, nil
}

// TxnItem is what a transaction did to a key, or what a comparison met.
type TxnItem struct {
	Namespace string `json:"namespace"`
	Key       string `json:"key"`
	// Revision is 0 when nothing changed, and for a key that does not exist.
	Revision uint64 `json:"revision"`
	ETag     string `json:"etag,omitempty"`
}

// TxnResult is the outcome of a transaction that was carried out.
type TxnResult struct {
	Revision uint64    `json:"revision"`
	Bookmark string    `json:"bookmark"`
	Put      []TxnItem `json:"put"`
	Delete   []TxnItem `json:"delete"`
}

// ConflictError says that comparisons of a transaction did not hold. Nothing was written.
type ConflictError struct {
	Answer    *Error
	Conflicts []TxnItem
	Bookmark  string
}

func (e *ConflictError) Error() string { return e.Answer.Error() }

func (e *ConflictError) Unwrap() error { return e.Answer }

// Txn sends a transaction, which is a JSON document. It is sent again only while the node promises that nothing was done.
func (c *Client) Txn(ctx context.Context, doc Body) (*TxnResult, error) {
	var out TxnResult
	err := c.readJSON(ctx, jsonCall("/v1/txn", &doc), &out)
	var e *Error
	if errors.As(err, &e) && e.Status == http.StatusConflict {
		x := &ConflictError{Answer: e}
		var told struct {
			Conflicts []TxnItem `json:"conflicts"`
			Bookmark  string    `json:"bookmark"`
		}
		if json.Unmarshal(e.body, &told) == nil {
			x.Conflicts, x.Bookmark = told.Conflicts, told.Bookmark
		}
		return nil, x
	}
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// jsonCall posts a document. Sent again it does no harm, where the first attempt is known to have done nothing.
func jsonCall(path string, body *Body) call {
	return call{
		method: http.MethodPost, path: path, body: body, repeatable: true,
		header: http.Header{"Content-Type": {"application/json"}},
	}
}

// marshalText is json.Marshal without escaping for HTML, which would make text six times as long.
func marshalText(doc any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(doc)
	return b.Bytes(), err
}
