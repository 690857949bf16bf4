package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/nodetest"
)

// TestBadClients is a node whose clients do what no client should: what they do costs them their own connection, and nobody
// else anything. All of it goes over real connections to the public listener of a process.
func TestBadClients(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	nodes, _ := layout(t, p, 1, 0)
	startAll(t, p.All)
	b := &badClients{node: nodes[0], small: randomBytes(300), large: randomBytes(1 << 20), streamed: randomBytes(3 << 20)}
	for key, value := range map[string][]byte{"small": b.small, "large": b.large, "streamed": b.streamed, "a/b": []byte("slash")} {
		b.node.Must(t, 200, http.MethodPut, "/v1/kv/default/"+key, value)
	}
	ns := b.node.Must(t, 200, http.MethodGet, "/v1/namespaces/default", nil)
	b.space = between(string(ns.Body), `"id":"`, `"`)
	t.Run("cut", b.cut)
	t.Run("headers", b.headers)
	t.Run("pipelined", b.pipelined)
	t.Run("never reading", b.neverReading)
	t.Run("half closed", b.halfClosed)
	t.Run("canonical", b.canonical)
	t.Run("ranges", b.ranges)
}

func between(s, before, after string) string {
	_, s, _ = strings.Cut(s, before)
	s, _, _ = strings.Cut(s, after)
	return s
}

type badClients struct {
	node                   *nodetest.Proc
	space                  string // the namespace's id
	small, large, streamed []byte
}

// dial returns a connection that gives up when the test has waited long enough.
func (b *badClients) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", b.node.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(nodetest.Patience)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

func request(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + strings.Join(headers, "") + "\r\n"
}

// wellServed fails unless somebody else is.
func (b *badClients) wellServed(t *testing.T) {
	t.Helper()
	for target, want := range map[string][]byte{"small": b.small, "large": b.large, "streamed": b.streamed} {
		if err := b.node.Sees(t.Context(), "/v1/kv/default/"+target, want); err != nil {
			t.Error(err)
		}
	}
}

// memory is what the node's process has, in MiB.
func (b *badClients) memory(t *testing.T) int64 {
	t.Helper()
	n, err := b.node.RssAnon()
	if err != nil {
		t.Fatal(err)
	}
	return n >> 20
}

// bounded fails when the node has taken more memory than that since it had before. The race detector has its own.
func (b *badClients) bounded(t *testing.T, before, most int64, what string) {
	t.Helper()
	after := b.memory(t)
	t.Logf("%s: %d MiB before, %d after", what, before, after)
	if after > before+most && !nodetest.Race {
		t.Errorf("%s: the node had %d MiB and has %d", what, before, after)
	}
}

// cut ends requests at every byte, by an end of the stream or by a reset, and goes on with others after each byte.
func (b *badClients) cut(t *testing.T) {
	for _, text := range []string{
		request("/v1/kv/default/small"),
		request("/v1/kv/default/none", "Range: bytes=0-1\r\n"),
		"PUT /v1/kv/default/cut HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + strings.Repeat("v", 20),
	} {
		for at := range len(text) {
			c := b.dial(t)
			if _, err := io.WriteString(c, text[:at]); err != nil {
				t.Fatal(err)
			}
			if at%2 == 0 {
				if err := c.SetLinger(0); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	text := request("/v1/kv/default/small")
	for at := range len(text) {
		c := b.dial(t)
		for _, piece := range []string{text[:at], text[at:]} {
			if _, err := io.WriteString(c, piece); err != nil {
				t.Fatal(err)
			}
		}
		b.answered(t, bufio.NewReader(c), text, 200, b.small)
		_ = c.Close() // it was answered
	}
	b.wellServed(t)
	if err := b.node.Gone(t.Context(), "/v1/kv/default/cut", "key_not_found"); err != nil {
		t.Errorf("a write that was cut has been carried out: %v", err)
	}
}

// answered reads one answer.
func (b *badClients) answered(t *testing.T, in *bufio.Reader, text string, status int, want []byte) http.Header {
	t.Helper()
	method, _, _ := strings.Cut(text, " ")
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%.100q: %v", text, err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != status || (want != nil && !bytes.Equal(body, want)) {
		t.Fatalf("%.100q: %s and %d bytes (%.200q), %v; want %d and %d", text, resp.Status, len(body), body, err, status, len(want))
	}
	return resp.Header
}

// headers have a limit of 64 KiB, of whatever they are made, and those below it are no reason to refuse anything.
func (b *badClients) headers(t *testing.T) {
	for _, tc := range []struct {
		name, lines string
		status      int
	}{
		{"one of 60 KiB", "X-A: " + strings.Repeat("a", 60<<10) + "\r\n", 200},
		{"one of 80 KiB", "X-A: " + strings.Repeat("a", 80<<10) + "\r\n", 431},
		{"many", strings.Repeat("X-A: 1\r\n", 10<<10), 431},
		{"an endless name", strings.Repeat("a", 80<<10), 431},
	} {
		a := b.node.Raw(t, http.MethodGet, request("/v1/kv/default/small", tc.lines), false)
		if a.Status != tc.status || (tc.status != 200 && !strings.Contains(a.Err().Message, "64 KiB")) {
			t.Errorf("%s: %v, want status %d", tc.name, a, tc.status)
		}
	}
	b.wellServed(t)
}

// pipelined sends 20,000 requests over one connection whose client begins to read when the node takes no more of them. All are
// answered, in their order.
func (b *badClients) pipelined(t *testing.T) {
	const n = 20_000
	before := b.memory(t)
	var text bytes.Buffer
	for i := range n {
		text.WriteString(request([]string{"/v1/kv/default/small", "/v1/kv/default/a%2Fb", "/v1/kv/default/none"}[i%3]))
	}
	c := b.dial(t)
	defer func() { _ = c.Close() }() // everything has been read
	if err := c.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	sent, err := c.Write(text.Bytes())
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	b.bounded(t, before, 16, "pipelined")
	if err := c.SetDeadline(time.Now().Add(4 * nodetest.Patience)); err != nil {
		t.Fatal(err)
	}
	var rest sync.WaitGroup
	rest.Go(func() {
		if _, err := c.Write(text.Bytes()[sent:]); err != nil {
			t.Error(err)
		}
	})
	in := bufio.NewReader(c)
	for i := range n {
		want := [...]struct {
			status int
			body   []byte
		}{{200, b.small}, {200, []byte("slash")}, {404, nil}}[i%3]
		b.answered(t, in, "GET "+fmt.Sprint(i), want.status, want.body)
	}
	rest.Wait()
	b.bounded(t, before, 16, "pipelined and answered")
}

// neverReading has clients ask for megabytes that they do not take: values that are in memory, values that are streamed, on the
// path and beside it. The node keeps no copy for them, and others are served. How they are cut at last is a test of
// node/hitpath, where time is cheap.
func (b *badClients) neverReading(t *testing.T) {
	before := b.memory(t)
	var deaf []net.Conn
	for i := range 60 {
		target := []string{"/v1/kv/default/large", "/v1/kv/default/streamed", "/v1/kv/default/large?consistency=strong"}[i%3]
		c := b.dial(t)
		if _, err := io.WriteString(c, strings.Repeat(request(target, []string{"", "Range: bytes=1-\r\n"}[i/3%2]), 50)); err != nil {
			t.Fatal(err)
		}
		deaf = append(deaf, c)
	}
	// Each is being answered, which is certain once it could read the first byte.
	for _, c := range deaf {
		if _, err := c.Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
	}
	b.wellServed(t)
	b.bounded(t, before, 40, "60 clients that do not read")
	for _, c := range deaf {
		_ = c.Close() // its node still writes to it
	}
	nodetest.Eventually(t, nodetest.Patience, "the connections of clients that have gone", func() error {
		n, err := b.node.Metric(t.Context(), "kvmesh_hitpath_connections")
		if err == nil && n > 20 {
			err = fmt.Errorf("%v connections", n)
		}
		return err
	})
	b.wellServed(t)
	if log := b.node.Log(t); strings.Contains(log, "level=ERROR") {
		t.Error("that clients leave is an error of the node's")
	}
}

// halfClosed has clients end their side after the request: they are answered, and then the connection ends.
func (b *badClients) halfClosed(t *testing.T) {
	cold := randomBytes(1000)
	for _, tc := range []struct {
		text   string
		status int
		body   []byte
	}{
		{request("/v1/kv/default/small"), 200, b.small},
		{request("/v1/kv/default/large"), 200, b.large},
		{request("/v1/kv/default/streamed"), 200, b.streamed},
		{request("/v1/kv/default/none"), 404, nil},
		{request("/v1/kv/nobody/none"), 404, nil},
		{request("/v1/kv/default/cold"), 200, cold},
		{request("/small?urlencoded=true", "Kv-Namespace: default\r\n"), 200, b.small},
		{request("/client/v4/accounts/a/storage/kv/namespaces/" + b.space + "/values/small"), 200, b.small},
		{"HEAD /v1/kv/default/small HTTP/1.1\r\nHost: x\r\n\r\n", 200, nil},
	} {
		b.node.Must(t, 200, http.MethodPut, "/v1/kv/default/cold", cold)
		c := b.dial(t)
		if _, err := io.WriteString(c, tc.text); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(c)
		b.answered(t, in, tc.text, tc.status, tc.body)
		if _, err := in.ReadByte(); err != io.EOF {
			t.Errorf("%.100q: after the answer: %v", tc.text, err)
		}
		_ = c.Close() // so has the node
	}
}

// canonical writes one key in every form that names it, on every surface: they are one entry.
func (b *badClients) canonical(t *testing.T) {
	key := fmt.Sprintf("ü/../%d", rand.IntN(1000))
	escaped := strings.NewReplacer("ü", "%C3%BC", "/", "%2F").Replace(key)
	value := randomBytes(100)
	b.node.Must(t, 200, http.MethodPut, "/v1/kv/default/"+escaped, value)
	b.node.Must(t, 200, http.MethodGet, "/v1/kv/default/"+escaped, nil)
	var etag string
	for _, form := range []string{escaped, key, strings.ToLower(escaped), strings.ReplaceAll(escaped, ".", "%2e"), strings.ReplaceAll(key, "..", "%2E.")} {
		for _, target := range []string{
			"/v1/kv/default/" + form, "/v1/kv/" + b.space + "/" + form,
			"/client/v4/accounts/a/storage/kv/namespaces/" + b.space + "/values/" + form,
		} {
			a := b.node.Raw(t, http.MethodGet, request(target), false)
			if a.Status != 200 || !bytes.Equal(a.Body, value) || a.Header.Get("Kv-Cache") != "hit" {
				t.Errorf("GET %s: %v", target, a)
			}
			if tag := a.Header.Get("Etag"); tag != "" && etag != "" && tag != etag {
				t.Errorf("GET %s: %s, another form had %s", target, tag, etag)
			} else if tag != "" {
				etag = tag
			}
		}
	}
}

// ranges asks for parts of large values, in memory and streamed, and for what has not changed: on the native surface, which has
// entity tags. The two that are Cloudflare's have none, and give the whole value whatever is asked for.
func (b *badClients) ranges(t *testing.T) {
	for key, value := range map[string][]byte{"large": b.large, "streamed": b.streamed} {
		n := len(value)
		target := "/v1/kv/default/" + key
		tag := b.node.Must(t, 200, http.MethodHead, target, nil).Header.Get("Etag")
		for _, tc := range []struct {
			headers []string
			status  int
			shown   string // Content-Range
			body    []byte
		}{
			{[]string{"Range", "bytes=1000-1999"}, 206, fmt.Sprintf("bytes 1000-1999/%d", n), value[1000:2000]},
			{[]string{"Range", "bytes=-300000"}, 206, fmt.Sprintf("bytes %d-%d/%d", n-300000, n-1, n), value[n-300000:]},
			{[]string{"Range", "bytes=70000-"}, 206, fmt.Sprintf("bytes 70000-%d/%d", n-1, n), value[70000:]},
			{[]string{"Range", fmt.Sprintf("bytes=%d-", n)}, 416, fmt.Sprintf("bytes */%d", n), nil},
			{[]string{"Range", "bytes=0-9", "If-Range", tag}, 206, fmt.Sprintf("bytes 0-9/%d", n), value[:10]},
			{[]string{"Range", "bytes=0-9", "If-Range", `"00000000-1"`}, 200, "", value},
			{[]string{"If-None-Match", tag}, 304, "", []byte{}},
			{[]string{"If-None-Match", tag, "Range", "bytes=0-9"}, 304, "", []byte{}},
			{[]string{"If-None-Match", `"00000000-1"`}, 200, "", value},
			{[]string{"If-Match", `"00000000-1"`}, 412, "", nil},
		} {
			a := b.node.Must(t, tc.status, http.MethodGet, target, nil, tc.headers...)
			if a.Header.Get("Content-Range") != tc.shown || (tc.body != nil && !bytes.Equal(a.Body, tc.body)) {
				t.Errorf("%s %q: %d bytes, Content-Range %q", key, tc.headers, len(a.Body), a.Header.Get("Content-Range"))
			}
		}
		for _, other := range [][]string{
			{"/client/v4/accounts/a/storage/kv/namespaces/" + b.space + "/values/" + key},
			{"/" + key + "?urlencoded=true", "Kv-Namespace", "default"},
		} {
			a := b.node.Must(t, 200, http.MethodGet, other[0], nil, append(other[1:], "Range", "bytes=0-9", "If-None-Match", tag)...)
			if !bytes.Equal(a.Body, value) || a.Header.Get("Etag") != "" {
				t.Errorf("GET %s: %d bytes, Etag %q", other[0], len(a.Body), a.Header.Get("Etag"))
			}
		}
	}
}
