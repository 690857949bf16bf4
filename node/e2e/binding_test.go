package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvmesh/node/nodetest"
)

// testBinding speaks the protocol of a Worker's KV binding to every node, and reads what the native API wrote and the other
// way round.
func testBinding(t *testing.T, w *world) {
	native := w.namespace(t, "binding")
	const named, encoded = "Kv-Namespace", "?urlencoded=true"
	large := randomBytes(3 << 20)
	for i, c := range w.nodes {
		key := fmt.Sprintf("/a%%2Fb%%20%d", i)
		small := []byte("of " + c.Name)
		c.Must(t, 200, http.MethodPut, key+encoded+"&expiration_ttl=600", small, named, "binding", "CF-KV-Metadata", `{"ü": 1}`)
		c.Must(t, 200, http.MethodPut, "/large"+encoded, large, named, "binding")
		for _, other := range w.nodes {
			nodetest.Eventually(t, visible, "a value of the binding elsewhere", func() error {
				a, err := other.Do(t.Context(), http.MethodGet, key+encoded+"&cache_ttl=86400", nil, named, "binding")
				if err != nil || !bytes.Equal(a.Body, small) || a.Header.Get("CF-KV-Metadata") != `{"ü":1}` || a.Header.Get("CF-Expiration") == "" {
					return fmt.Errorf("%s: %v %v %w", other.Name, a, a.Header, err)
				}
				a, err = other.Do(t.Context(), http.MethodGet, "/large"+encoded, nil, named, "binding")
				if err != nil || !bytes.Equal(a.Body, large) {
					return fmt.Errorf("%s: %d bytes of %d: %w", other.Name, len(a.Body), len(large), err)
				}
				return other.Sees(t.Context(), native+key[1:], small)
			})
		}
	}
	last := w.nodes[len(w.nodes)-1]
	var page struct {
		Keys []struct {
			Name, Metadata string
			Expiration     int64
		}
		Complete bool `json:"list_complete"`
		Cursor   string
	}
	for _, c := range w.nodes {
		a := c.Must(t, 200, http.MethodGet, "/?prefix=a%2F&key_count_limit=2", nil, named, "binding")
		if err := json.Unmarshal(a.Body, &page); err != nil || len(page.Keys) != 2 || page.Keys[0].Metadata != `{"ü":1}` || page.Complete || page.Cursor == "" {
			t.Errorf("%s: %v, %v", c.Name, a, err)
		}
		// A cursor is good at every node.
		a = last.Must(t, 200, http.MethodGet, "/?prefix=a%2F&key_count_limit=1000&cursor="+page.Cursor, nil, named, "binding")
		if !strings.Contains(string(a.Body), `"list_complete":true`) || strings.Contains(string(a.Body), "cursor") {
			t.Errorf("%s: the last page: %v", c.Name, a)
		}
		a = c.Must(t, 200, http.MethodPost, "/bulk/get", []byte(`{"keys":["a/b 0","nothing"],"withMetadata":true}`), named, "binding")
		if want := fmt.Sprintf(`{"a/b 0":{"value":"of %s","metadata":{"ü":1}},"nothing":null}`, w.nodes[0].Name); string(a.Body) != want {
			t.Errorf("%s: %s, want %s", c.Name, a.Body, want)
		}
		for request, want := range map[string]string{
			"PUT /k?expiration_ttl=5": "400 Invalid expiration_ttl of 5. Expiration TTL must be at least 60.",
			"GET /?cursor=made-up":    "400 Invalid cursor",
			"GET /nothing":            "404 Not Found",
		} {
			if got := statusLine(t, c, request, "binding"); got != want {
				t.Errorf("%s: %s is %q, want %q", c.Name, request, got, want)
			}
		}
		if got := statusLine(t, c, "GET /k", "no such namespace"); !strings.HasPrefix(got, `400 there is no namespace "no such namespace"`) {
			t.Errorf("%s: %q", c.Name, got)
		}
	}
	last.Must(t, 200, http.MethodDelete, "/a%2Fb%200"+encoded, nil, named, "binding")
	w.everywhere(t, "deleted by the binding", func(ctx context.Context, c *nodetest.Client) error {
		return c.Gone(ctx, native+"a%2Fb%200"+aDay, "key_not_found")
	})
	if a := last.Must(t, 200, http.MethodGet, "/v1/miniflare/binding", nil, "MF-URL", "https://fake-host/large?urlencoded=true"); !bytes.Equal(a.Body, large) {
		t.Errorf("Miniflare's form: %d bytes", len(a.Body))
	}
}

// statusLine sends a request of the binding and returns the status of its answer with the reason phrase.
func statusLine(t *testing.T, c *nodetest.Client, request, ns string) string {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(c.Base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // the line has been read
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request+" HTTP/1.1\r\nHost: fake-host\r\nContent-Length: 0\r\nKv-Namespace: "+ns+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(strings.TrimSpace(line), "HTTP/1.1 ")
}
