package api

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

func TestShortBodyStoresNothing(t *testing.T) {
	for name, request := range map[string]string{
		"length":          "Content-Length: 10\r\n\r\nhello",
		"nothing at all":  "Content-Length: 10\r\n\r\n",
		"no last chunk":   "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"half a chunk":    "Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
		"malformed chunk": "Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
	} {
		r := newRig(t)
		c := dial(t, r.serve())
		c.send("PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\n" + request)
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		resp, body := c.answer("PUT")
		e := readError(t, []byte(body))
		if resp.StatusCode != 400 || e.Code != kv.CodeInvalidBody || e.Field != "value" || !strings.Contains(e.Message, "nothing was stored") {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
		if len(r.svc.keys) > 0 {
			t.Errorf("%s: stored", name)
		}
	}
}

// TestLongBody: what follows the announced length is not part of the value; it is read as the next request and refused.
func TestLongBody(t *testing.T) {
	r := newRig(t)
	c := dial(t, r.serve())
	c.send("PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello, world\r\n\r\n")
	if resp, _ := c.answer("PUT"); resp.StatusCode != 200 || string(r.svc.keys["default\x00k"].value) != "hello" {
		t.Errorf("%d, stored %q", resp.StatusCode, r.svc.keys["default\x00k"].value)
	}
	resp, body := c.answer("GET")
	if e := readError(t, []byte(body)); resp.StatusCode != 400 || e.Code != kv.CodeInvalidParameter || !resp.Close {
		t.Errorf("the rest: %d %s", resp.StatusCode, body)
	}
}

func TestAnnouncedTooLargeIsRefusedAtOnce(t *testing.T) {
	r := newRig(t)
	for _, expect := range []string{"", "Expect: 100-continue\r\n"} {
		c := dial(t, r.serve())
		// Not one byte of the body is sent: an answer means that none was waited for.
		c.send(fmt.Sprintf("PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n", expect, kv.MaxValueBytes+1))
		resp, body := c.answer("PUT")
		e := readError(t, []byte(body))
		if resp.StatusCode != 413 || e.Code != kv.CodeValueTooLarge || e.Field != "value" ||
			!strings.Contains(e.Message, "26214400") || !strings.Contains(e.Message, "25 MiB") {
			t.Errorf("%q: %d %s", expect, resp.StatusCode, body)
		}
	}
}

func TestChunkedTooLargeIsCut(t *testing.T) {
	r := newRig(t)
	c := dial(t, r.serve())
	sent := make(chan error, 1)
	go func() {
		chunk := "100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n"
		_, err := io.WriteString(c.Conn, "PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
		for i := 0; i < 25 && err == nil; i++ {
			_, err = io.WriteString(c.Conn, chunk)
		}
		if err == nil {
			_, err = io.WriteString(c.Conn, "1\r\ny\r\n") // and no end
		}
		sent <- err
	}()
	resp, body := c.answer("PUT")
	e := readError(t, []byte(body))
	if resp.StatusCode != 413 || e.Code != kv.CodeValueTooLarge || !strings.Contains(e.Message, "26214400") || !resp.Close {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if err := <-sent; err != nil {
		t.Errorf("cut before the limit: %v", err)
	}
	if len(r.svc.keys) > 0 {
		t.Error("stored")
	}
}

func TestExpectContinue(t *testing.T) {
	r := newRig(t)
	c := dial(t, r.serve())
	const head = "PUT /v1/kv/default/k%s HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	c.send(fmt.Sprintf(head, ""))
	if line, err := c.in.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	if _, err := c.in.Discard(2); err != nil {
		t.Fatal(err)
	}
	c.send("hello")
	if resp, _ := c.answer("PUT"); resp.StatusCode != 200 || string(r.svc.keys["default\x00k"].value) != "hello" {
		t.Errorf("%d", resp.StatusCode)
	}
	// What is refused by the head alone is answered without asking for the body, and the connection is not re-used.
	c.send(fmt.Sprintf(head, "?expiration_ttl=0"))
	if resp, body := c.answer("PUT"); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestPipelinedAndMixedConnections(t *testing.T) {
	r := newRig(t)
	c := dial(t, r.serve())
	c.send("PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nv" +
		"HEAD /v1/kv/default/k HTTP/1.1\r\nHost: x\r\n\r\n" +
		"GET /v1/kv/default/k HTTP/1.1\r\nHost: x\r\n\r\n" +
		"GET /v1/kv/default/%zz HTTP/1.1\r\nHost: x\r\n\r\n")
	for i, want := range []struct {
		method string
		status int
	}{{"PUT", 200}, {"HEAD", 200}, {"GET", 200}, {"GET", 400}} {
		resp, body := c.answer(want.method)
		if resp.StatusCode != want.status {
			t.Errorf("answer %d: %d %s", i, resp.StatusCode, body)
		}
		if want.method == "HEAD" && resp.Header.Get("Content-Length") != "1" {
			t.Errorf("HEAD: %v", resp.Header)
		}
	}
}

// TestHeadersThatFit: the longest legal request passes, a header beyond the limit is refused in the common form.
func TestHeadersThatFit(t *testing.T) {
	r := newRig(t)
	addr := r.serve()
	key := strings.Repeat("%C3%BC", 256)
	c := dial(t, addr)
	c.send("PUT /v1/kv/default/" + key + " HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nKv-Metadata: \"" +
		strings.Repeat("m", kv.MaxMetadataBytes-2) + "\"\r\nCookie: " + strings.Repeat("c", 16<<10) + "\r\n\r\nv")
	if resp, body := c.answer("PUT"); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	c = dial(t, addr)
	c.send("GET /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nCookie: " + strings.Repeat("c", 80<<10))
	resp, body := c.answer("GET")
	if e := readError(t, []byte(body)); resp.StatusCode != 431 || !strings.Contains(e.Message, "64 KiB") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestRefusalIsNotTakenFromValues: a value that looks like net/http's own refusal, and is written to the connection by
// itself, passes unchanged.
func TestRefusalIsNotTakenFromValues(t *testing.T) {
	const lookalike = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"
	if _, ok := refusal([]byte(lookalike)); !ok {
		t.Fatal("the test does not test what it should")
	}
	addr := serveHandler(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(lookalike)))
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, lookalike)
	}), ServerOptions{})
	c := dial(t, addr)
	for range 2 {
		if resp, body := c.ask("GET", "/"); resp.StatusCode != 200 || body != lookalike {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
}

func TestRefusal(t *testing.T) {
	const headers = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	for in, want := range map[string]string{
		"HTTP/1.1 400 Bad Request" + headers + "400 Bad Request": "HTTP/1.1 400 Bad Request\r\n",
		"HTTP/1.1 400 Bad Request: missing required Host header" + headers +
			"400 Bad Request: missing required Host header": "HTTP/1.1 400 Bad Request\r\n",
		"HTTP/1.1 501 Not Implemented" + headers + "Unsupported transfer encoding": "HTTP/1.1 501 Not Implemented\r\n",
		"HTTP/1.1 200 OK" + headers + "ok":                                         "",
		"HTTP/1.1 400 Bad Request\r\nX: y" + headers:                               "",
		"HTTP/1.1 " + headers:                                                      "",
		"HTTP/1.1 400 Bad Request\r\n":                                             "",
		"":                                                                         "",
	} {
		got, ok := refusal([]byte(in))
		if ok != (want != "") || !strings.HasPrefix(string(got), want) {
			t.Errorf("%q: %q", in, got)
		}
	}
}
