package cfbind

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// FuzzBulkGet gives a bulk get any body: what is taken holds every limit.
func FuzzBulkGet(f *testing.F) {
	for _, g := range bulkGets {
		if len(g.body) < 4<<10 {
			f.Add(g.body)
		}
	}
	f.Add(strings.Repeat(`{"keys":[`, 2000))
	f.Add(`{"keys":null,"type":null,"withMetadata":null,"cacheTtl":null,"keys":["a"],"keys":["b"]}`)
	f.Fuzz(func(t *testing.T, body string) {
		b, err := readBulkGet(strings.NewReader(body))
		if err != nil {
			if status, text := told(err); status < 400 || status >= 500 || status == 404 || text == "" {
				t.Errorf("%d %q", status, text)
			}
			return
		}
		seen := map[string]bool{}
		for _, key := range b.keys {
			if err := kv.ValidateKey(key); err != nil || seen[key] {
				t.Errorf("key %q: %v", key, err)
			}
			seen[key] = true
		}
		if len(b.keys) < 1 || len(b.keys) > cfkv.MaxBulkGetKeys || b.kind != "text" && b.kind != "json" || b.ttl.Seconds() < cfkv.MinCacheTTL {
			t.Errorf("%+v", b)
		}
	})
}

// FuzzTargets sends any path, query, metadata and Miniflare URL to the surface: no answer is a fault of the node, and what
// reaches the service is valid.
func FuzzTargets(f *testing.F) {
	for _, group := range [][]golden{reads, writes, lists} {
		for _, g := range group {
			path, query, _ := strings.Cut(g.target, "?")
			f.Add(g.method, path, query, strings.Join(g.headers, ""), "")
			f.Add(g.method, MiniflarePath+"default", "", "", "https://fake-host"+g.target)
		}
	}
	f.Fuzz(func(t *testing.T, method, path, query, metadata, original string) {
		svc := &fake{keys: map[string]stored{}}
		h := New(Options{Service: svc})
		r := httptest.NewRequest(http.MethodPut, "/", strings.NewReader("v"))
		if method == http.MethodGet || method == http.MethodDelete {
			r.Method = method
		}
		u, err := url.Parse(path)
		if err != nil || u.Path == "" {
			return // net/http answers it
		}
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = u.Path, u.RawPath, query
		r.Header.Set(headerMetadata, metadata)
		if original != "" {
			r.Header.Set(headerMiniflareURL, original)
		} else {
			r.Header.Set(headerNamespace, "default")
		}
		if original != "" && !strings.HasPrefix(r.URL.Path, MiniflarePath) {
			return // another surface's
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		for key, s := range svc.keys {
			if kv.ValidateKey(key) != nil || s.expiry != 0 && s.expiry < testNow.Unix()+cfkv.MinTTL || len(s.metadata) > kv.MaxMetadataBytes {
				t.Errorf("%q %+v", key, s)
			}
		}
		for _, get := range svc.gets {
			if kv.ValidateKey(get.Key) != nil || get.CacheTTL.Seconds() < cfkv.MinCacheTTL {
				t.Errorf("%+v", get)
			}
		}
		for _, list := range svc.lists {
			if list.Limit < 1 || list.Limit > kv.MaxListLimit || len(list.Prefix) > kv.MaxKeyBytes || len(list.Cursor) > maxCursorBytes {
				t.Errorf("%+v", list)
			}
		}
	})
}
