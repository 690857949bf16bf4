package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// Meta is what the headers of an answer about a key say.
type Meta struct {
	ETag     string `json:"etag,omitempty"`
	Revision uint64 `json:"revision"`
	Bookmark string `json:"bookmark,omitempty"`
	// Metadata is compact JSON, nil when there is none.
	Metadata json.RawMessage `json:"metadata,omitempty"`
	// Expiration in unix seconds, 0 = never.
	Expiration int64 `json:"expiration,omitempty"`
	// Cache is the tier that answered a read.
	Cache string `json:"cache,omitempty"`
	// StalenessMs is the proven bound on the age of a read's answer in milliseconds, -1 when the node gave none.
	StalenessMs int64 `json:"staleness_ms"`
	// Size of the value in bytes, -1 when unknown.
	Size int64 `json:"size"`
}

// Object is a value that is being read. Close Body.
type Object struct {
	Meta
	Body io.ReadCloser
	// Header is the whole head of the answer.
	Header http.Header
}

// GetOptions of a read.
type GetOptions struct {
	// CacheTTL in seconds, as text for the node to judge; empty: its default.
	CacheTTL string
}

// Get starts to read a value. A key that does not exist is an Error with kv.CodeKeyNotFound.
func (c *Client) Get(ctx context.Context, ns, key string, o GetOptions) (*Object, error) {
	return c.read(ctx, http.MethodGet, ns, key, o)
}

// Head reads everything but the value.
func (c *Client) Head(ctx context.Context, ns, key string, o GetOptions) (*Meta, error) {
	obj, err := c.read(ctx, http.MethodHead, ns, key, o)
	if err != nil {
		return nil, err
	}
	return &obj.Meta, obj.Body.Close()
}

func (c *Client) read(ctx context.Context, method, ns, key string, o GetOptions) (*Object, error) {
	path, err := valuePath(ns, key)
	if err != nil {
		return nil, err
	}
	cl := call{method: method, path: path, query: url.Values{}, repeatable: true}
	if o.CacheTTL != "" {
		cl.query.Set("cache_ttl", o.CacheTTL)
	}
	resp, err := c.do(ctx, cl)
	if err != nil {
		return nil, err
	}
	m, err := metaOf(resp)
	if err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	return &Object{Meta: m, Body: resp.Body, Header: resp.Header}, nil
}

// PutOptions of a write. Numbers are text, for the node to judge; empty: not given.
type PutOptions struct {
	Metadata      []byte // JSON
	Expiration    string // unix seconds
	ExpirationTTL string // seconds
	IfMatch       string // an ETag, with its quotes, or *
	IfNoneMatch   string // *
}

// Put writes a value.
func (c *Client) Put(ctx context.Context, ns, key string, body Body, o PutOptions) (*Meta, error) {
	path, err := valuePath(ns, key)
	if err != nil {
		return nil, err
	}
	header := conditions(o.IfMatch, o.IfNoneMatch)
	cl := call{method: http.MethodPut, path: path, query: url.Values{}, header: header, body: &body}
	// A condition holds once: repeated, it would meet the result of the first attempt.
	cl.repeatable = len(cl.header) == 0
	if o.Metadata != nil {
		text, err := headerJSON(o.Metadata)
		if err != nil {
			return nil, err
		}
		cl.header.Set("Kv-Metadata", text)
	}
	if o.Expiration != "" {
		cl.query.Set("expiration", o.Expiration)
	}
	if o.ExpirationTTL != "" {
		cl.query.Set("expiration_ttl", o.ExpirationTTL)
	}
	return c.write(ctx, cl)
}

// Delete removes a key. One that does not exist is no error.
func (c *Client) Delete(ctx context.Context, ns, key, ifMatch string) (*Meta, error) {
	path, err := valuePath(ns, key)
	if err != nil {
		return nil, err
	}
	cl := call{method: http.MethodDelete, path: path, header: conditions(ifMatch, "")}
	cl.repeatable = len(cl.header) == 0
	return c.write(ctx, cl)
}

func (c *Client) write(ctx context.Context, cl call) (*Meta, error) {
	resp, err := c.do(ctx, cl)
	if err != nil {
		return nil, err
	}
	m, err := metaOf(resp)
	m.Size = -1
	return &m, errors.Join(err, drain(resp))
}

func conditions(ifMatch, ifNoneMatch string) http.Header {
	h := http.Header{}
	if ifMatch != "" {
		h.Set("If-Match", ifMatch)
	}
	if ifNoneMatch != "" {
		h.Set("If-None-Match", ifNoneMatch)
	}
	return h
}

// ListOptions of a listing.
type ListOptions struct {
	Prefix, Delimiter, Cursor string
	// Limit of keys and groups in one page; 0: the node's default.
	Limit  int
	Values bool
}

// Key is one key of a listing.
type Key struct {
	Name       string          `json:"name"`
	Expiration int64           `json:"expiration,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Revision   uint64          `json:"revision"`
	Size       int64           `json:"size"`
	// Value is nil when it was not asked for, or is too large for a listing.
	Value []byte `json:"value,omitzero"`
}

// Page is one page of a listing.
type Page struct {
	Keys     []Key    `json:"keys"`
	Prefixes []string `json:"prefixes,omitempty"`
	Complete bool     `json:"list_complete"`
	Cursor   string   `json:"cursor,omitempty"`
}

// List reads one page.
func (c *Client) List(ctx context.Context, ns string, o ListOptions) (*Page, error) {
	path, err := namespacePath("/v1/kv/", ns)
	if err != nil {
		return nil, err
	}
	q := url.Values{}
	for name, v := range map[string]string{"prefix": o.Prefix, "delimiter": o.Delimiter, "cursor": o.Cursor} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if o.Limit != 0 {
		q.Set("limit", strconv.Itoa(o.Limit))
	}
	if o.Values {
		q.Set("values", "true")
	}
	var page Page
	err = c.readJSON(ctx, call{method: http.MethodGet, path: path, query: q, repeatable: true}, &page)
	if err != nil {
		return nil, err
	}
	if !page.Complete && page.Cursor == "" {
		return nil, errors.New("the node ended a page of the listing without a cursor for the next one")
	}
	return &page, nil
}

// Pages reads all pages from o.Cursor on. It ends after the first error.
func (c *Client) Pages(ctx context.Context, ns string, o ListOptions) iter.Seq2[*Page, error] {
	return func(yield func(*Page, error) bool) {
		for {
			page, err := c.List(ctx, ns, o)
			if err == nil && !page.Complete && page.Cursor == o.Cursor {
				err = errors.New("the listing does not go on: the node returned the cursor it was given")
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(page, nil) || page.Complete {
				return
			}
			o.Cursor = page.Cursor
		}
	}
}

// drainBytes bounds the rest of an answer that is read for the sake of the connection.
const drainBytes = 64 << 10

// maxJSONBytes bounds an answer that is decoded as a whole: a full page with the largest values a listing carries has
// about 90 MiB.
const maxJSONBytes = 128 << 20

func (c *Client) readJSON(ctx context.Context, cl call, into any) error {
	resp, err := c.do(ctx, cl)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // everything that was wanted has been read
	r := &io.LimitedReader{R: resp.Body, N: maxJSONBytes}
	if err := json.NewDecoder(r).Decode(into); err != nil {
		if r.N <= 0 {
			return fmt.Errorf("the answer of %s has more than %d bytes; ask for smaller pages", c.base, maxJSONBytes)
		}
		who := "a kvmesh node"
		if c.foreign {
			who = "a server of the Workers KV REST API"
		}
		return fmt.Errorf("the answer of %s to %s %s is not what %s sends: %w", c.base, cl.method, cl.path, who, err)
	}
	return drain(resp)
}

// drain reads the rest of a small answer, so that the connection can be used again.
func drain(resp *http.Response) error {
	_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, drainBytes))
	return errors.Join(err, resp.Body.Close())
}

func metaOf(resp *http.Response) (Meta, error) {
	h := resp.Header
	m := Meta{ETag: h.Get("ETag"), Bookmark: h.Get("Kv-Bookmark"), Cache: h.Get("Kv-Cache"), Size: resp.ContentLength}
	revision, err1 := headerInt(h, "Kv-Revision", 0)
	expiration, err2 := headerInt(h, "Kv-Expiration", 0)
	staleness, err3 := headerInt(h, "Kv-Staleness-Ms", -1)
	m.Revision, m.Expiration, m.StalenessMs = uint64(revision), expiration, staleness
	var err4 error
	if v := h.Get("Kv-Metadata"); v != "" {
		if m.Metadata = json.RawMessage(unescapeJSON(v)); !json.Valid(m.Metadata) {
			err4 = errors.New("the node sent metadata that is not JSON")
		}
	}
	return m, errors.Join(err1, err2, err3, err4)
}

// headerInt reads a number of a header that may be missing.
func headerInt(h http.Header, name string, missing int64) (int64, error) {
	v := h.Get(name)
	if v == "" {
		return missing, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		return missing, fmt.Errorf("the node sent the header %s: %q, which is not a number", name, v)
	}
	return n, nil
}

// headerJSON makes metadata fit into a header line: no white space outside strings, and DEL, which JSON allows in a
// string and HTTP nowhere, as an escape.
func headerJSON(raw []byte) (string, error) {
	compact, err := kv.CompactMetadata(raw)
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(string(compact), "\x7f", `\u007f`), nil
}

// unescapeJSON writes characters outside ASCII as themselves again. Nodes escape them, because header lines are ASCII,
// but metadata is limited in bytes: kept in its escaped form it might be too long to be written back.
func unescapeJSON(s string) string {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, '\\')
		if i < 0 || i+1 >= len(s) {
			b.WriteString(s)
			return b.String()
		}
		b.WriteString(s[:i])
		s = s[i:]
		r, n := escapedRune(s)
		if n > 0 && utf16.IsSurrogate(r) {
			low, m := escapedRune(s[n:])
			r, n = utf16.DecodeRune(r, low), n+m
			if r == utf8.RuneError { // half a pair has no other form than its escape
				n = 0
			}
		}
		if n == 0 || r < utf8.RuneSelf {
			b.WriteString(s[:2]) // some other escape, of which the second character is part
			s = s[2:]
			continue
		}
		b.WriteRune(r)
		s = s[n:]
	}
}

// escapedRune reads \uXXXX at the beginning of s. The length is 0 when there is none.
func escapedRune(s string) (rune, int) {
	if len(s) < 6 || s[:2] != `\u` {
		return 0, 0
	}
	n, err := strconv.ParseUint(s[2:6], 16, 16)
	if err != nil {
		return 0, 0
	}
	return rune(n), 6
}

func valuePath(ns, key string) (string, error) {
	if key == "" { // the node would take the path for another call
		return "", kv.ValidateKey(key)
	}
	path, err := KeysPath(ns)
	return path + EscapeSegment(key), err
}

// KeysPath is where the keys of a namespace are, with a slash at the end.
func KeysPath(ns string) (string, error) {
	path, err := namespacePath("/v1/kv/", ns)
	return path + "/", err
}

func namespacePath(prefix, ns string) (string, error) {
	if ns == "" {
		return "", kv.FieldErrorf(kv.CodeInvalidTitle, "namespace", "the namespace is empty; name one by its title or its id")
	}
	return prefix + EscapeSegment(ns), nil
}

// ExpiresIn is the time until a key expires, 0 for one that never does.
func (k Key) ExpiresIn(now time.Time) time.Duration {
	if k.Expiration == 0 {
		return 0
	}
	return time.Unix(k.Expiration, 0).Sub(now)
}
