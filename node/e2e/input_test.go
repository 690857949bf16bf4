package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kvmesh/node/certs"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// names are keys that something between a client and the store likes to change, with the ways to write each in a URL.
var names = []struct {
	key   string
	forms []string
}{
	{"a/b", []string{"a/b", "a%2Fb", "a%2fb"}},
	{"a//b", []string{"a//b", "a%2F/b", "a/%2Fb"}},
	{"a/../b", []string{"a/../b", "a/%2e%2E/b", "a%2F..%2Fb"}},
	{"../x", []string{"../x", "%2e./x", "..%2Fx"}},
	{"a%2Fb", []string{"a%252Fb", "a%252%46b"}},
	{"\x00", []string{"%00"}},
	{"%00", []string{"%2500"}},
	{" x", []string{"%20x"}},
	{"+x", []string{"+x", "%2Bx"}}, // plus is a space in queries only
	{"v1/kv", []string{"v1/kv", "v1%2Fkv"}},
	{"/", []string{"/", "%2F"}},
	{"?x#y", []string{"%3Fx%23y"}},
	{"ü", []string{"%C3%BC", "%c3%bc", "ü"}},
	{"u\u0308", []string{"u%CC%88"}}, // looks like the one before, and is another
	{"😀", []string{"%F0%9F%98%80", "😀"}},
	{strings.Repeat("k", kv.MaxKeyBytes-2) + "ü", []string{strings.Repeat("k", kv.MaxKeyBytes-2) + "%C3%BC"}},
}

// send writes a request by hand: Go's own client would change some of these targets. It ends the sending side only when
// the body is shorter than it says: a server takes that for a client that has gone.
func send(t *testing.T, c *nodetest.Client, method, target, body string, headers ...string) nodetest.Answer {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", method, target)
	if method == http.MethodPut && !slices.Contains(headers, "Content-Length") {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	for i := 0; i+1 < len(headers); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", headers[i], headers[i+1])
	}
	short := false
	if i := slices.Index(headers, "Content-Length"); i >= 0 && body != "" {
		size, err := strconv.Atoi(headers[i+1])
		short = err == nil && size > len(body)
	}
	return c.Raw(t, method, b.String()+"\r\n"+body, short)
}

func testNames(t *testing.T, w *world) {
	ns := w.namespace(t, "names")
	for i, n := range names {
		c := w.nodes[i%len(w.nodes)]
		if a := send(t, c, http.MethodPut, ns+n.forms[0], "value of "+n.key); a.Status != 200 {
			t.Fatalf("%s: PUT %q: %v", c.Name, n.forms[0], a)
		}
	}
	for _, c := range w.nodes {
		for _, n := range names {
			for _, form := range n.forms {
				nodetest.Eventually(t, visible, "key "+form, func() error {
					if a := send(t, c, http.MethodGet, ns+form, ""); a.Status != 200 || string(a.Body) != "value of "+n.key {
						return fmt.Errorf("%s: GET %q: %v, want the value of %q", c.Name, form, a, n.key)
					}
					return nil
				})
			}
		}
	}
	var want []string
	for _, n := range names {
		want = append(want, n.key)
	}
	slices.Sort(want)
	w.everywhere(t, "listing", func(_ context.Context, c *nodetest.Client) error {
		if got := list(t, c, strings.TrimSuffix(ns, "/")).names(); !slices.Equal(got, want) {
			return fmt.Errorf("%s lists %q, want %q", c.Name, got, want)
		}
		return nil
	})
	// Each is deleted by its last form, and none takes another with it.
	for i, n := range names {
		c := w.nodes[(i+1)%len(w.nodes)]
		if a := send(t, c, http.MethodDelete, ns+n.forms[len(n.forms)-1], ""); a.Status != 200 {
			t.Errorf("%s: DELETE %q: %v", c.Name, n.key, a)
		}
		if got := list(t, c, strings.TrimSuffix(ns, "/")); len(got.Keys) != len(names)-i-1 || slices.Contains(got.names(), n.key) {
			t.Errorf("%s: after DELETE %q the listing has %q", c.Name, n.key, got.names())
		}
	}
}

// testBadInput: each of these is refused with its status, code and field, at every node, and the value that was there
// before is there after all of them.
func testBadInput(t *testing.T, w *world) {
	ns := w.namespace(t, "bad")
	w.nodes[0].Must(t, 200, http.MethodPut, ns+"k", []byte("kept"), "Kv-Metadata", "1")
	long := strings.Repeat("k", kv.MaxKeyBytes+1)
	json1025 := `"` + strings.Repeat("m", kv.MaxMetadataBytes-1) + `"`
	const put, get = http.MethodPut, http.MethodGet
	for _, tc := range []struct {
		name, method, target string
		headers              []string
		status               int
		code, field, says    string
	}{
		{"empty key", put, ns, nil, 400, "invalid_key", "key", "empty"},
		{"empty key read", get, ns, nil, 400, "invalid_key", "key", "empty"},
		{"dot", put, ns + ".", nil, 400, "invalid_key", "key", "not allowed"},
		{"dot escaped", put, ns + "%2e", nil, 400, "invalid_key", "key", "not allowed"},
		{"dot dot", put, ns + "..", nil, 400, "invalid_key", "key", "not allowed"},
		{"dot dot escaped", get, ns + "%2E%2e", nil, 400, "invalid_key", "key", "not allowed"},
		{"513 bytes", put, ns + long, nil, 400, "key_too_long", "key", "512"},
		{"513 bytes read", get, ns + long, nil, 400, "key_too_long", "key", "512"},
		{"not UTF-8", put, ns + "%ff", nil, 400, "invalid_key", "key", "UTF-8"},
		{"not UTF-8 raw", put, ns + "\xff", nil, 400, "invalid_key", "key", "UTF-8"},
		{"bad escape", put, ns + "a%zz", nil, 400, "invalid_parameter", "", "%25"},
		{"cut escape", put, ns + "a%2", nil, 400, "invalid_parameter", "", "%25"},
		{"metadata no JSON", put, ns + "k", []string{"Kv-Metadata", "{x"}, 400, "invalid_metadata", "Kv-Metadata", "JSON"},
		{"metadata 1025", put, ns + "k", []string{"Kv-Metadata", json1025}, 400, "metadata_too_large", "Kv-Metadata", "1024"},
		{"expired", put, ns + "k?expiration=1000000000", nil, 400, "invalid_expiration", "expiration", "future"},
		{"expiration no number", put, ns + "k?expiration=soon", nil, 400, "invalid_expiration", "expiration", "seconds"},
		{"ttl 0", put, ns + "k?expiration_ttl=0", nil, 400, "invalid_expiration", "expiration_ttl", "1 or more"},
		{"ttl -1", put, ns + "k?expiration_ttl=-1", nil, 400, "invalid_expiration", "expiration_ttl", "1 or more"},
		{"cache_ttl no number", get, ns + "k?cache_ttl=x", nil, 400, "invalid_parameter", "cache_ttl", "seconds"},
		{"typing error", put, ns + "k?expiration_tll=60", nil, 400, "invalid_parameter", "expiration_tll", "expiration_ttl"},
		{"bad query escape", get, ns + "k?cache_ttl=%zz", nil, 400, "invalid_parameter", "cache_ttl", "%25"},
		{"limit 0", get, strings.TrimSuffix(ns, "/") + "?limit=0", nil, 400, "invalid_parameter", "limit", "1000"},
		{"limit 1001", get, strings.TrimSuffix(ns, "/") + "?limit=1001", nil, 400, "invalid_parameter", "limit", "1000"},
		{"cursor", get, strings.TrimSuffix(ns, "/") + "?cursor=bm9wZQ", nil, 400, "invalid_cursor", "cursor", "again without"},
		{"unknown namespace", get, "/v1/kv/nobody/k", nil, 404, "namespace_not_found", "namespace", "create it"},
		{"unknown namespace written", put, "/v1/kv/nobody/k", nil, 404, "namespace_not_found", "namespace", "create it"},
		{"title like an id", put, "/v1/namespaces/" + strings.Repeat("0", 32), nil, 400, "invalid_title", "title", "id"},
		{"both conditions", put, ns + "k", []string{"If-Match", "*", "If-None-Match", "*"}, 400, "invalid_parameter", "If-Match", "not both"},
		{"wrong path", get, "/v1/kvs/x", nil, 404, "not_found", "", "/v1/kv/"},
		{"method", http.MethodPatch, ns + "k", nil, 405, "method_not_allowed", "", "GET"},
		{"coding", put, ns + "k", []string{"Content-Encoding", "gzip"}, 400, "invalid_body", "Content-Encoding", "gzip"},
		{"one byte more", put, ns + "k", []string{"Content-Length", strconv.Itoa(kv.MaxValueBytes + 1)}, 413, "value_too_large", "value", "26214400"},
	} {
		for _, c := range w.nodes {
			a := send(t, c, tc.method, tc.target, "", tc.headers...)
			if e := a.Err(); a.Status != tc.status || e.Code != tc.code || e.Field != tc.field || !strings.Contains(e.Message, tc.says) {
				t.Errorf("%s at %s: %v, want status %d, code %s, field %q and %q in the message",
					tc.name, c.Name, a, tc.status, tc.code, tc.field, tc.says)
			}
		}
	}
	for _, c := range w.nodes {
		if a := c.Must(t, 200, get, ns+"k"+aDay, nil); string(a.Body) != "kept" || a.Header.Get("Kv-Metadata") != "1" {
			t.Errorf("%s: %v", c.Name, a)
		}
		if got := list(t, c, strings.TrimSuffix(ns, "/")).names(); !slices.Equal(got, []string{"k"}) {
			t.Errorf("%s lists %q", c.Name, got)
		}
	}
}

// testBodyLength: a body that is shorter than announced stores nothing, what follows a body is another request.
func testBodyLength(t *testing.T, w *world) {
	ns := w.namespace(t, "length")
	for _, c := range w.nodes {
		target := ns + "k"
		c.Must(t, 200, http.MethodPut, target, []byte("kept"))
		for _, size := range []int{5, kv.MaxInlineValueBytes + 1, 2 << 20} {
			a := send(t, c, http.MethodPut, target, strings.Repeat("x", size-1), "Content-Length", strconv.Itoa(size))
			if e := a.Err(); a.Status != 400 || e.Code != "invalid_body" || !strings.Contains(e.Message, "nothing was stored") {
				t.Errorf("%s: %d of %d bytes: %v", c.Name, size-1, size, a)
			}
			if err := c.Sees(t.Context(), target+aDay, []byte("kept")); err != nil {
				t.Errorf("after a short body: %v", err)
			}
		}
		chunks := "PUT " + target + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
		if a := c.Raw(t, http.MethodPut, chunks, true); a.Status != 400 || a.Err().Code != "invalid_body" {
			t.Errorf("%s: chunks without an end: %v", c.Name, a)
		}
		if a := send(t, c, http.MethodPut, target, "four and more", "Content-Length", "4"); a.Status != 200 {
			t.Errorf("%s: a body longer than announced: %v", c.Name, a)
		}
		if err := c.Sees(t.Context(), target+aDay, []byte("four")); err != nil {
			t.Errorf("after a long body: %v", err)
		}
	}
}

// testLarge: the sizes at which a value changes the way it travels, at an edge and at a voter.
func testLarge(t *testing.T, w *world) {
	ns := w.namespace(t, "large")
	edges, voters := w.role(certs.RoleEdge), w.role(certs.RoleVoter)
	const inline, cached = kv.MaxInlineValueBytes, kv.MaxCachedValueBytes
	sizes := []int{0, 1, 1023, 1025, inline - 1, inline, inline + 1, cached - 1, cached, cached + 1, 3 << 20}
	for i, size := range sizes {
		for _, c := range []*nodetest.Client{edges[i%3], voters[i%3]} {
			target, value := ns+c.Name+strconv.Itoa(size), randomBytes(size)
			c.Must(t, 200, http.MethodPut, target, value)
			for _, o := range w.nodes {
				nodetest.Eventually(t, visible, "large value", func() error { return o.Sees(t.Context(), target+aDay, value) })
			}
			if size > 10 {
				a := w.nodes[i%len(w.nodes)].Must(t, 206, http.MethodGet, target+aDay, nil, "Range", fmt.Sprintf("bytes=%d-%d", size/2, size-2))
				if !bytes.Equal(a.Body, value[size/2:size-1]) {
					t.Errorf("%d bytes: a range of %d bytes differs", size, len(a.Body))
				}
			}
		}
	}
	for _, c := range []*nodetest.Client{edges[0], voters[1]} {
		target, value := ns+c.Name+"max", randomBytes(kv.MaxValueBytes+1)
		c.Must(t, 200, http.MethodPut, target, value[1:])
		for _, headers := range [][]string{nil, {"If-Match", "*"}} {
			a := c.Must(t, 413, http.MethodPut, target, value, headers...)
			if e := a.Err(); e.Code != "value_too_large" || !strings.Contains(e.Message, "26214400 bytes (25 MiB)") {
				t.Errorf("%s: one byte too many: %v", c.Name, a)
			}
		}
		for _, o := range []*nodetest.Client{edges[1], voters[2]} {
			nodetest.Eventually(t, visible, "25 MiB", func() error { return o.Sees(t.Context(), target, value[1:]) })
		}
	}
	missingBlob(t, w, ns)
}

// missingBlob takes a value's file away from one voter after the other: the voter answers all the same, from the others.
func missingBlob(t *testing.T, w *world, ns string) {
	for i, m := range w.mesh.Members {
		if m.Role != certs.RoleVoter {
			continue
		}
		c := w.nodes[i]
		for _, size := range []int{kv.MaxInlineValueBytes + 1, kv.MaxCachedValueBytes + 1} {
			target, value := fmt.Sprintf("%slost-%d-%d", ns, i, size), randomBytes(size)
			removeBlobs(t, w.mesh.Dir(i))
			put := w.nodes[0].Must(t, 200, http.MethodPut, target, value)
			nodetest.Eventually(t, visible, "the file of a blob", func() error { // two of three have it when the write is answered
				if removeBlobs(t, w.mesh.Dir(i)) == 0 {
					return fmt.Errorf("%s has none", c.Name)
				}
				return nil
			})
			nodetest.Eventually(t, visible, "a value without its file", func() error { return c.Sees(t.Context(), target, value) })
			a := c.Must(t, 200, http.MethodGet, target, nil)
			if want := put.Header.Get("Kv-Revision"); a.Header.Get("Kv-Revision") != want {
				t.Errorf("%s without its file: revision %s, want %s", c.Name, a.Header.Get("Kv-Revision"), want)
			}
		}
	}
}

// removeBlobs removes all large values from a voter's disk.
func removeBlobs(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a temporary file that has got its name meanwhile
			}
			return err
		}
		n++
		return os.Remove(path)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
