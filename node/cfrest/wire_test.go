package cfrest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// serve puts the surface behind a server with the limits of a node, and connects to it.
func (r *rig) serve() (net.Conn, *bufio.Reader) {
	t := r.t
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := api.NewServer(r.h, api.ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(api.LimitListener(l, 0)) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	// A guard against a hanging test, not a measurement.
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

// ask sends a request on a connection, all of it before it listens, and reads the answer.
func (r *rig) ask(c net.Conn, in *bufio.Reader, head, body string) (int, string) {
	r.t.Helper()
	method, _, _ := strings.Cut(head, " ")
	if _, err := io.WriteString(c, head+"\r\nHost: x\r\n"+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body))+body); err != nil {
		r.t.Fatalf("%.60s: the server does not take the body: %v", head, err)
	}
	resp, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		r.t.Fatalf("%.60s: %v", head, err)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatalf("%.60s: %v", head, err)
	}
	return resp.StatusCode, string(text)
}

// A client that sends all of a refused body before it listens, as most do, hears why, and goes on with the connection.
func TestRefusedBodiesAreHeard(t *testing.T) {
	r := newRig(t)
	c, in := r.serve()
	big := strings.Repeat("x", kv.MaxValueBytes+1)
	for _, tc := range []struct {
		head, body string
		status     int
		text       string
	}{
		{"PUT " + base + "/" + nsA + "/values/k HTTP/1.1", big, 413, "10029 put: 'Value length of 26214401 exceeds limit of 26214400.'"},
		{"PUT " + base + "/" + nsNone + "/values/k HTTP/1.1", big[1:], 404, "10013 put: 'namespace not found'"},
		{"PUT " + base + "/" + nsA + "/bulk HTTP/1.1", `{"x":"` + big + `"}`, 400, "10012 bulk put keys: 'the body is not as this call takes it: it is an object, not an array'"},
		{"PUT " + base + "/" + nsA + "/values/k?expiration_ttl=1 HTTP/1.1", big[1:], 400, "10034 put: 'Invalid expiration_ttl of 1. Expiration TTL must be at least 60.'"},
		{"PUT " + base + "/" + nsA + "/values/k HTTP/1.1", "v", 200, ""},
		{"DELETE " + base + "/" + nsA + "/values/k HTTP/1.1", "{}", 200, ""},
		{"GET " + base + "/" + nsA + "/values/k HTTP/1.1", "", 404, "10009 get: 'key not found'"},
	} {
		status, text := r.ask(c, in, tc.head, tc.body)
		r.want(status, text, tc.status, tc.text)
	}
}

// Keys reach the surface as they stand in the request line, through a real server.
func TestKeysOnTheWire(t *testing.T) {
	r := newRig(t)
	c, in := r.serve()
	for path, key := range map[string]string{
		"a/b": "a/b", "a%2Fb": "a/b", "//": "//", "a/../b": "a/../b", "x+y": "x+y", "%25": "%", "%2525": "%25", "%C3%BC%20x": "ü x", "ü": "ü", "a%3Fb": "a?b",
	} {
		status, text := r.ask(c, in, "PUT "+base+"/"+nsA+"/values/"+path+" HTTP/1.1", path)
		r.want(status, text, 200, "")
		if got := r.has(key); got != path+"||0" {
			t.Errorf("%s: the key %q has %s", path, key, got)
		}
		if status, text = r.ask(c, in, "GET "+base+"/"+nsA+"/values/"+path+" HTTP/1.1", ""); status != 200 || text != path {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
}
