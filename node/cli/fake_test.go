package cli

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"unicode/utf16"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

// fakeNow is the mesh time of the fake.
const fakeNow = 1_700_000_000

type fakeValue struct {
	value      []byte
	metadata   string
	expiration int64
	revision   uint64
}

// fakeNode is the native API of DESIGN §9 over maps.
type fakeNode struct {
	*httptest.Server
	token   string
	cluster string // the answer of /v1/cluster
	// txnStatus and txnAnswer are the answer of /v1/txn.
	txnStatus int
	txnAnswer string
	// before sees each request first, and answers it itself when it returns true.
	before func(http.ResponseWriter, *http.Request) bool

	mu       sync.Mutex // guards all below
	revision uint64
	txns     []string                         // documents
	bulks    []int                            // items of each bulk call
	titles   map[string]string                // id → title
	data     map[string]map[string]*fakeValue // id → key
	requests int
}

const defaultID = "00000000000000000000000000000001"

func newFake(t *testing.T) *fakeNode {
	f := &fakeNode{
		titles: map[string]string{defaultID: "default"},
		data:   map[string]map[string]*fakeValue{defaultID: {}},
	}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeNode) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.before != nil && f.before(w, r) {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.requests++
		err = f.serve(w, r, body)
	}
	var e *kv.Error
	if errors.As(err, &e) {
		f.refuse(w, e)
	} else if err != nil {
		panic(http.ErrAbortHandler)
	}
}

func (f *fakeNode) refuse(w http.ResponseWriter, e *kv.Error) {
	status := map[kv.Code]int{
		kv.CodeKeyNotFound: 404, kv.CodeNamespaceNotFound: 404, kv.CodeNotFound: 404, kv.CodeNamespaceExists: 409,
		kv.CodeConditionFailed: 412, kv.CodeValueTooLarge: 413, kv.CodeUnauthorized: 401, kv.CodeNoLeader: 503,
		kv.CodeOutcomeUnknown: 503, kv.CodeOverloaded: 503,
	}[e.Code]
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter.Seconds())))
	}
	w.WriteHeader(cmp.Or(status, 400))
	writeJSON(w, map[string]any{"error": map[string]any{"code": e.Code, "message": e.Message, "field": e.Field}})
}

func writeJSON(w io.Writer, doc any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(doc)
}

func (f *fakeNode) serve(w http.ResponseWriter, r *http.Request, body []byte) error {
	if f.token != "" && r.Header.Get("Authorization") != "Bearer "+f.token {
		return kv.FieldErrorf(kv.CodeUnauthorized, "Authorization", "this node needs a token")
	}
	path := cmp.Or(r.URL.RawPath, r.URL.EscapedPath())
	switch rest, isKV := strings.CutPrefix(path, "/v1/kv/"); {
	case isKV:
		rawNS, rawKey, hasKey := strings.Cut(rest, "/")
		id, err := f.find(rawNS)
		if err != nil {
			return err
		}
		switch {
		case !hasKey && r.Method == http.MethodPost:
			return f.bulk(w, rawNS, f.data[id], body)
		case !hasKey:
			return f.list(w, r, f.data[id])
		}
		key, err := client.UnescapeSegment(rawKey)
		if err != nil {
			return kv.Errorf(kv.CodeInvalidKey, "%v", err)
		}
		if err := kv.ValidateKey(key); err != nil {
			return err
		}
		return f.value(w, r, f.data[id], key, body)
	case path == "/v1/txn":
		return f.txn(w, body)
	case path == "/v1/namespaces":
		doc := map[string][]client.Namespace{}
		for _, id := range slices.Sorted(maps.Keys(f.titles)) {
			ns := client.Namespace{ID: id, Title: f.titles[id]}
			if ns.Title != "default" { // of that one nobody knows
				keys, size := int64(len(f.data[id])), int64(0)
				for key, v := range f.data[id] {
					size += int64(len(key) + len(v.value))
				}
				ns.Keys, ns.Bytes = &keys, &size
			}
			doc["namespaces"] = append(doc["namespaces"], ns)
		}
		writeJSON(w, doc)
		return nil
	case strings.HasPrefix(path, "/v1/namespaces/"):
		return f.namespace(w, r, strings.TrimPrefix(path, "/v1/namespaces/"), body)
	case path == "/v1/cluster":
		_, err := io.WriteString(w, f.cluster)
		return err
	}
	return kv.Errorf(kv.CodeNotFound, "no such path")
}

func (f *fakeNode) find(raw string) (string, error) {
	ref, err := client.UnescapeSegment(raw)
	if err != nil {
		return "", kv.Errorf(kv.CodeInvalidTitle, "%v", err)
	}
	for id, title := range f.titles {
		if ref == id || ref == title {
			return id, nil
		}
	}
	return "", kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace", "there is no namespace %q", ref)
}

func (f *fakeNode) namespace(w http.ResponseWriter, r *http.Request, raw string, body []byte) error {
	id, err := f.find(raw)
	var doc struct{ Title string }
	if len(body) > 0 && json.Unmarshal(body, &doc) != nil {
		return kv.Errorf(kv.CodeInvalidBody, "not JSON")
	}
	switch {
	case r.Method == http.MethodPut && doc.Title == "":
		title, _ := client.UnescapeSegment(raw)
		if err == nil {
			return kv.Errorf(kv.CodeNamespaceExists, "the title %q is taken", title)
		}
		id = fmt.Sprintf("%032x", len(f.titles)+1)
		f.titles[id], f.data[id] = title, map[string]*fakeValue{}
	case err != nil:
		return err
	case r.Method == http.MethodPut:
		f.titles[id] = doc.Title
	case r.Method == http.MethodDelete:
		delete(f.titles, id)
		delete(f.data, id)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	writeJSON(w, client.Namespace{ID: id, Title: f.titles[id]})
	return nil
}

func etagOf(v *fakeValue) string { return fmt.Sprintf(`"0badcafe-%d"`, v.revision) }

func (f *fakeNode) value(w http.ResponseWriter, r *http.Request, data map[string]*fakeValue, key string, body []byte) error {
	held := data[key]
	if held != nil && held.expiration != 0 && held.expiration <= fakeNow {
		held = nil
	}
	if m := r.Header.Get("If-Match"); m != "" && (held == nil || m != "*" && m != etagOf(held)) ||
		r.Method == http.MethodPut && r.Header.Get("If-None-Match") == "*" && held != nil {
		return kv.Errorf(kv.CodeConditionFailed, "the condition does not hold")
	}
	switch r.Method {
	case http.MethodPut:
		v := &fakeValue{value: body, metadata: r.Header.Get("Kv-Metadata")}
		if len(body) > kv.MaxValueBytes {
			return kv.Errorf(kv.CodeValueTooLarge, "the value has %d bytes; the limit is %d", len(body), kv.MaxValueBytes)
		}
		if _, err := kv.CompactMetadata([]byte(v.metadata)); err != nil {
			return err
		}
		if err := v.expire(r.URL.Query()); err != nil {
			return err
		}
		f.revision++
		v.revision = f.revision
		data[key], held = v, v
	case http.MethodDelete:
		w.Header().Set("Kv-Revision", "0")
		if held != nil {
			f.revision++
			w.Header().Set("Kv-Revision", strconv.FormatUint(f.revision, 10))
		}
		delete(data, key)
		return nil
	default:
		if held == nil {
			return kv.FieldErrorf(kv.CodeKeyNotFound, "key", "there is no such key")
		}
		w.Header().Set("Kv-Cache", "hit")
		w.Header().Set("Kv-Staleness-Ms", "12")
		if held.metadata != "" {
			w.Header().Set("Kv-Metadata", asciiJSON(held.metadata))
		}
		if held.expiration != 0 {
			w.Header().Set("Kv-Expiration", strconv.FormatInt(held.expiration, 10))
		}
	}
	w.Header().Set("Etag", etagOf(held))
	w.Header().Set("Kv-Revision", strconv.FormatUint(held.revision, 10))
	w.Header().Set("Kv-Bookmark", fmt.Sprintf("%032x.%d", 1, held.revision))
	if r.Method == http.MethodGet {
		_, err := w.Write(held.value)
		return err
	}
	return nil
}

// bulk carries out the puts of a bulk call as if each were a call of its own.
func (f *fakeNode) bulk(w http.ResponseWriter, ns string, data map[string]*fakeValue, body []byte) error {
	var doc struct {
		Put []struct {
			Key        string          `json:"key"`
			Value      *string         `json:"value"`
			Base64     []byte          `json:"value_base64"`
			Metadata   json.RawMessage `json:"metadata"`
			Expiration int64           `json:"expiration"`
			TTL        int64           `json:"expiration_ttl"`
		} `json:"put"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return kv.Errorf(kv.CodeInvalidBody, "%v", err)
	}
	f.bulks = append(f.bulks, len(doc.Put))
	type outcome struct {
		Key    string `json:"key"`
		Status int    `json:"status"`
		Error  any    `json:"error,omitempty"`
	}
	var out struct {
		Put []outcome `json:"put"`
	}
	for _, p := range doc.Put {
		target := "/v1/kv/" + ns + "/" + client.EscapeSegment(p.Key)
		if p.Expiration != 0 {
			target += "?expiration=" + strconv.FormatInt(p.Expiration, 10)
		}
		if p.TTL != 0 {
			target += "?expiration_ttl=" + strconv.FormatInt(p.TTL, 10)
		}
		req := httptest.NewRequest(http.MethodPut, target, nil)
		if p.Metadata != nil {
			req.Header.Set("Kv-Metadata", string(p.Metadata))
		}
		value := p.Base64
		if p.Value != nil {
			value = []byte(*p.Value)
		}
		rec := httptest.NewRecorder()
		f.mu.Unlock() // before may use it
		answered := f.before != nil && f.before(rec, req)
		f.mu.Lock()
		if !answered {
			if err := f.value(rec, req, data, p.Key, value); err != nil {
				f.refuse(rec, err.(*kv.Error))
			}
		}
		var failed struct{ Error any }
		_ = json.Unmarshal(rec.Body.Bytes(), &failed) // empty after a success
		out.Put = append(out.Put, outcome{p.Key, rec.Code, failed.Error})
	}
	writeJSON(w, out)
	return nil
}

// txn answers as the test has said.
func (f *fakeNode) txn(w http.ResponseWriter, body []byte) error {
	f.txns = append(f.txns, string(body))
	w.WriteHeader(f.txnStatus)
	_, err := io.WriteString(w, f.txnAnswer)
	return err
}

// asciiJSON escapes what a header line should not carry.
func asciiJSON(s string) string {
	var b strings.Builder
	for _, u := range utf16.Encode([]rune(s)) {
		if u < 0x7f {
			b.WriteByte(byte(u))
		} else {
			fmt.Fprintf(&b, "\\u%04x", u)
		}
	}
	return b.String()
}

func (v *fakeValue) expire(q url.Values) error {
	for name, base := range map[string]int64{"expiration": 0, "expiration_ttl": fakeNow} {
		if text := q.Get(name); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if v.expiration = base + n; err != nil || v.expiration <= fakeNow {
				return kv.FieldErrorf(kv.CodeInvalidExpiration, name, "%s=%s is not in the future", name, text)
			}
		}
	}
	return nil
}

func (f *fakeNode) list(w http.ResponseWriter, r *http.Request, data map[string]*fakeValue) error {
	q := r.URL.Query()
	limit := 1000
	if q.Has("limit") {
		limit, _ = strconv.Atoi(q.Get("limit"))
	}
	after, err := base64.RawURLEncoding.DecodeString(q.Get("cursor"))
	if err != nil {
		return kv.FieldErrorf(kv.CodeInvalidCursor, "cursor", "the cursor is of another query")
	}
	page := client.Page{Keys: []client.Key{}, Complete: true}
	last := ""
	for _, name := range slices.Sorted(maps.Keys(data)) {
		shown, group := name, false
		if d := q.Get("delimiter"); d != "" {
			if i := strings.Index(strings.TrimPrefix(name, q.Get("prefix")), d); i >= 0 {
				shown, group = name[:len(q.Get("prefix"))+i+len(d)], true
			}
		}
		if !strings.HasPrefix(name, q.Get("prefix")) || shown <= string(after) || shown == last {
			continue
		}
		if len(page.Keys)+len(page.Prefixes) == limit {
			page.Complete, page.Cursor = false, base64.RawURLEncoding.EncodeToString([]byte(last))
			break
		}
		last = shown
		if group {
			page.Prefixes = append(page.Prefixes, shown)
			continue
		}
		v := data[name]
		k := client.Key{Name: name, Expiration: v.expiration, Revision: v.revision, Size: int64(len(v.value))}
		if v.metadata != "" {
			k.Metadata = json.RawMessage(v.metadata)
		}
		if q.Get("values") == "true" && len(v.value) <= kv.MaxInlineValueBytes {
			k.Value = v.value
		}
		page.Keys = append(page.Keys, k)
	}
	writeJSON(w, page)
	return nil
}

// state is a copy of a namespace, without revisions.
func (f *fakeNode) state(title string) map[string]fakeValue {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]fakeValue{}
	for id, t := range f.titles {
		if t == title {
			for k, v := range f.data[id] {
				out[k] = fakeValue{value: v.value, metadata: v.metadata, expiration: v.expiration}
			}
		}
	}
	return out
}
