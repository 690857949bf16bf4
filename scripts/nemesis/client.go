//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// namespace holds all keys of a run.
const namespace = "default"

// caller speaks the native HTTP API. It is safe for concurrent use.
type caller struct {
	http *http.Client
	rec  *recorder
}

func newCaller(rec *recorder) *caller {
	return &caller{rec: rec, http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second, DisableCompression: true,
	}}}
}

// answer is what came back for one request.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// maxAnswer bounds a body; the largest value that is written is far smaller.
const maxAnswer = 1 << 20

// send sends one request. sent says whether a connection to send it on had been made: without one nothing can have
// happened.
func (c *caller) send(ctx context.Context, method, u string, header map[string]string, body []byte) (a answer, sent bool, err error) {
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return a, false, err
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, connected.Load(), err
	}
	defer func() { _ = resp.Body.Close() }() // what matters has been read by then
	a = answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return a, true, err
}

// code is the error code of an answer, empty when it has none.
func (a *answer) code() string {
	var doc struct {
		Error struct {
			Code string `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(a.body, &doc) != nil {
		return ""
	}
	return doc.Error.Code
}

func (a *answer) uint(header string) uint64 {
	n, err := strconv.ParseUint(a.header.Get(header), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// bookmark is the epoch and the revision of the answer's bookmark.
func (a *answer) bookmark() (epoch string, rev uint64) {
	epoch, text, _ := strings.Cut(a.header.Get("Kv-Bookmark"), ".")
	rev, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return epoch, 0
	}
	return epoch, rev
}

// keyName is the name of one key of a pair.
func keyName(pair, i int) string { return fmt.Sprintf("pair-%d/%d", pair, i) }

func keyURL(base, key string) string { return base + "/v1/kv/" + namespace + "/" + key }

// failed sorts what is no success. What the interface promises is taken at its word: only outcome_unknown, an answer that
// cannot be read, and a connection that broke leave open what happened.
func (c *caller) failed(o *op, a *answer, sent bool, err error) {
	switch {
	case err != nil && !sent:
		o.outcome, o.code = refused, "unreachable"
	case err != nil:
		o.outcome, o.code = unknown, "broken"
	default:
		o.code = a.code()
		switch {
		case o.code == "outcome_unknown":
			o.outcome = unknown
		case o.code == "" && a.status >= 500:
			o.outcome = unknown
			c.rec.oddf("status %d without a code: %.200s (%v)", a.status, a.body, o)
		case a.status >= 500:
			o.outcome = refused
		default:
			o.outcome = refused
			c.rec.oddf("status %d: %.200s (%v)", a.status, a.body, o)
		}
		if o.code == "internal" {
			c.rec.oddf("an error of its own: %.300s (%v)", a.body, o)
		}
	}
}

// read reads one key. A bookmark may be empty.
func (c *caller) read(ctx context.Context, o *op, base string, i int, bookmark string) {
	u, header := keyURL(base, keyName(o.pair, i)), map[string]string{}
	if !o.cached {
		u += "?consistency=strong"
	}
	if bookmark != "" {
		header["Kv-Bookmark"] = bookmark
	}
	a, sent, err := c.send(ctx, http.MethodGet, u, header, nil)
	o.keys[i].value, o.keys[i].rev, o.staleness = 0, 0, -1
	if err == nil {
		o.epoch, o.asOf = a.bookmark()
		o.tier = a.header.Get("Kv-Cache")
		if ms, err := strconv.ParseInt(a.header.Get("Kv-Staleness-Ms"), 10, 64); err == nil {
			o.staleness = ms * int64(time.Millisecond)
		}
	}
	switch {
	case err == nil && a.status == http.StatusOK:
		o.outcome = done
		id, ok := parseValue(a.body)
		if !ok {
			c.rec.oddf("the value of %s is damaged: %d bytes, %.60q (%v)", keyName(o.pair, i), len(a.body), a.body, o)
		}
		o.keys[i].value, o.keys[i].rev = id, a.uint("Kv-Revision")
	case err == nil && a.status == http.StatusNotFound && a.code() == "key_not_found":
		o.outcome = done
	default:
		c.failed(o, &a, sent, err)
	}
}

// write puts or deletes one key.
func (c *caller) write(ctx context.Context, o *op, base string, i int, tag string, size int) (bookmark string) {
	t := &o.keys[i]
	header := map[string]string{}
	switch t.demand {
	case whenAbsent:
		header["If-None-Match"] = "*"
	case whenPresent:
		header["If-Match"] = "*"
	case whenRevision:
		header["If-Match"] = tag
	}
	method, body := http.MethodDelete, []byte(nil)
	if t.does == write {
		method, body = http.MethodPut, makeValue(o.id, size)
	}
	a, sent, err := c.send(ctx, method, keyURL(base, keyName(o.pair, i)), header, body)
	var doc struct {
		Revision uint64 `json:"revision"`
	}
	switch {
	case err == nil && a.status == http.StatusOK && json.Unmarshal(a.body, &doc) == nil:
		o.outcome, t.rev = done, doc.Revision
		o.epoch, o.asOf = a.bookmark()
		return a.header.Get("Kv-Bookmark")
	case err == nil && a.status == http.StatusPreconditionFailed:
		o.outcome, t.failed, t.rev = conflict, true, a.uint("Kv-Revision")
	default:
		c.failed(o, &a, sent, err)
	}
	return ""
}

// txnItem is an item of a transaction, and of its answer.
type txnItem struct {
	Namespace string  `json:"namespace"`
	Key       string  `json:"key"`
	Revision  uint64  `json:"revision,omitempty"`
	Exists    *bool   `json:"exists,omitempty"`
	Value     *string `json:"value,omitempty"`
}

// txn carries out what the operation does to both keys, all or nothing.
func (c *caller) txn(ctx context.Context, o *op, base string, size int) (bookmark string) {
	var doc struct {
		Compare []txnItem `json:"compare,omitempty"`
		Put     []txnItem `json:"put,omitempty"`
		Delete  []txnItem `json:"delete,omitempty"`
	}
	yes, no := true, false
	for i, t := range o.keys {
		it := txnItem{Namespace: namespace, Key: keyName(o.pair, i)}
		switch t.demand {
		case whenAbsent:
			doc.Compare = append(doc.Compare, txnItem{Namespace: namespace, Key: it.Key, Exists: &no})
		case whenPresent:
			doc.Compare = append(doc.Compare, txnItem{Namespace: namespace, Key: it.Key, Exists: &yes})
		case whenRevision:
			doc.Compare = append(doc.Compare, txnItem{Namespace: namespace, Key: it.Key, Revision: t.expect})
		}
		switch t.does {
		case write:
			value := string(makeValue(o.id, size))
			it.Value = &value
			doc.Put = append(doc.Put, it)
		case remove:
			doc.Delete = append(doc.Delete, it)
		}
	}
	body, err := json.Marshal(doc)
	if err != nil {
		c.rec.oddf("a transaction that cannot be written down: %v", err)
		o.outcome = refused
		return ""
	}
	a, sent, err := c.send(ctx, http.MethodPost, base+"/v1/txn", nil, body)
	var told struct {
		Put, Delete, Conflicts []txnItem
	}
	understood := err == nil && json.Unmarshal(a.body, &told) == nil
	each := func(items []txnItem, do func(*touch, uint64)) {
		for _, it := range items {
			for i := range o.keys {
				if it.Key == keyName(o.pair, i) {
					do(&o.keys[i], it.Revision)
				}
			}
		}
	}
	switch {
	case understood && a.status == http.StatusOK:
		o.outcome = done
		o.epoch, o.asOf = a.bookmark()
		each(append(told.Put, told.Delete...), func(t *touch, rev uint64) { t.rev = rev })
		return a.header.Get("Kv-Bookmark")
	case understood && a.status == http.StatusConflict && len(told.Conflicts) > 0:
		o.outcome = conflict
		o.epoch, o.asOf = a.bookmark()
		each(told.Conflicts, func(t *touch, rev uint64) { t.failed, t.rev = true, rev })
	default:
		c.failed(o, &a, sent, err)
	}
	return ""
}

// tagOf is the entity tag of a key's state.
func tagOf(epoch string, rev uint64) string {
	return fmt.Sprintf(`"%s-%d"`, epoch[max(0, len(epoch)-8):], rev)
}

// makeValue is the value that operation id writes: it names its writer, and every byte of it can be checked.
func makeValue(id uint32, size int) []byte {
	v := fmt.Appendf(nil, "%d:%d:", id, size)
	x := id
	for len(v) < size {
		x = x*1664525 + 1013904223
		v = append(v, 'a'+byte(x>>24)%26)
	}
	return v
}

// parseValue returns who wrote a value, if every byte of it is as it was written.
func parseValue(v []byte) (uint32, bool) {
	first, rest, ok := strings.Cut(string(v[:min(len(v), 32)]), ":")
	size, _, ok2 := strings.Cut(rest, ":")
	id, err := strconv.ParseUint(first, 10, 32)
	n, err2 := strconv.Atoi(size)
	if !ok || !ok2 || err != nil || err2 != nil || n < 0 || n > maxAnswer {
		return 0, false
	}
	return uint32(id), bytes.Equal(v, makeValue(uint32(id), n))
}

// metrics reads single values of a node's admin listener.
func (c *caller) metrics(ctx context.Context, admin string, names ...string) (map[string]float64, error) {
	a, _, err := c.send(ctx, http.MethodGet, admin+"/metrics", nil, nil)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, fmt.Errorf("%s/metrics: status %d", admin, a.status)
	}
	got := make(map[string]float64)
	for line := range strings.Lines(string(a.body)) {
		for _, name := range names {
			if text, ok := strings.CutPrefix(line, name+" "); ok {
				if v, err := strconv.ParseFloat(strings.TrimSpace(text), 64); err == nil {
					got[name] = v
				}
			}
		}
	}
	return got, nil
}

// ready asks a node whether it is.
func (c *caller) ready(ctx context.Context, admin string) (bool, string) {
	a, _, err := c.send(ctx, http.MethodGet, admin+"/readyz", nil, nil)
	if err != nil {
		if u := new(url.Error); asError(err, &u) {
			err = u.Err
		}
		return false, err.Error()
	}
	return a.status == http.StatusOK, strings.TrimSpace(string(a.body))
}
