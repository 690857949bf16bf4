package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"time"

	"kvmesh/raftstore/kv"
)

// maxCursorBytes is more than any cursor has: two names, base64url.
const maxCursorBytes = 4 << 10

// listKeys answers a listing.
func (s *surface) listKeys(c *call) error {
	req, err := listRequest(c)
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	if req.Namespace, err = s.namespace(ctx, c); err != nil {
		return err
	}
	page, err := s.svc.List(ctx, req)
	if err != nil {
		return err
	}
	h := c.w.Header()
	bookmarkHeader(h, page.Epoch, page.AsOf)
	stalenessHeader(h, page.Staleness)
	jsonHeader(h)
	if c.r.Method == http.MethodHead {
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	return writePage(c.w, page, req.Delimiter != "", s.svc.MeshTime())
}

func listRequest(c *call) (req ListRequest, err error) {
	req.Consistency = c.demands
	if req.Prefix, err = c.q.text(paramPrefix); err != nil {
		return req, err
	}
	if req.Delimiter, err = c.q.text(paramDelimiter); err != nil {
		return req, err
	}
	req.Limit = kv.MaxListLimit
	if text, ok := c.q.get(paramLimit); ok {
		n, ok := natural(text)
		if !ok || n < 1 || n > kv.MaxListLimit {
			return req, kv.FieldErrorf(kv.CodeInvalidParameter, paramLimit, "limit=%s is not a number from 1 to %d",
				shown(text), kv.MaxListLimit)
		}
		req.Limit = int(n)
	}
	switch text, ok := c.q.get(paramValues); {
	case text == "true":
		req.Values = true
	case ok && text != "false":
		return req, kv.FieldErrorf(kv.CodeInvalidParameter, paramValues, "values=%s is neither true nor false", shown(text))
	}
	req.Cursor, _ = c.q.get(paramCursor)
	if len(req.Cursor) > maxCursorBytes {
		return req, kv.FieldErrorf(kv.CodeInvalidCursor, paramCursor,
			"the cursor has %d bytes, more than any that a listing gave; send it back as it came", len(req.Cursor))
	}
	return req, nil
}

// keyDoc is one key of a listing.
type keyDoc struct {
	Name       string          `json:"name"`
	Expiration int64           `json:"expiration,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Revision   kv.Revision     `json:"revision"`
	Size       int64           `json:"size"`
	Value      *[]byte         `json:"value,omitempty"` // base64; a pointer, so that an empty value is shown
}

// writePage writes a page key by key: with values it can have tens of MiB, of which base64 and one document would make
// two more copies.
func writePage(w http.ResponseWriter, page *ListPage, grouped bool, now time.Time) error {
	// bufio keeps its first error and gives it back at Flush.
	out := bufio.NewWriterSize(w, copyBufferBytes)
	put := jsonTo(out)
	_, _ = out.WriteString(`{"keys":[`)
	first := true
	for i := range page.Keys {
		k := &page.Keys[i]
		if expired(k.Expiry, now) {
			continue
		}
		if !first {
			_ = out.WriteByte(',')
		}
		first = false
		doc := keyDoc{Name: k.Name, Expiration: k.Expiry, Metadata: k.Metadata, Revision: k.Revision, Size: k.Size}
		if k.HasValue {
			value := k.Value
			if value == nil {
				value = []byte{}
			}
			doc.Value = &value
		}
		if err := put(doc); err != nil {
			return err
		}
	}
	_, _ = out.WriteString("]")
	if grouped {
		_, _ = out.WriteString(`,"prefixes":`)
		prefixes := page.Prefixes
		if prefixes == nil {
			prefixes = []string{}
		}
		if err := put(prefixes); err != nil {
			return err
		}
	}
	_, _ = out.WriteString(`,"list_complete":`)
	if err := put(page.Complete); err != nil {
		return err
	}
	if !page.Complete {
		_, _ = out.WriteString(`,"cursor":`)
		if err := put(page.Cursor); err != nil {
			return err
		}
	}
	_, _ = out.WriteString("}\n")
	return out.Flush()
}

// jsonTo returns a function that appends one value to out as JSON, without the line break of json.Encoder and without
// escaping for HTML. Its buffer serves for all values.
func jsonTo(out *bufio.Writer) func(any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	return func(v any) error {
		buf.Reset()
		if err := enc.Encode(v); err != nil {
			return err
		}
		_, err := out.Write(bytes.TrimSuffix(buf.Bytes(), []byte("\n")))
		return err
	}
}
