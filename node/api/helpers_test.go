package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// readError decodes an error body strictly: its shape is part of the interface.
func readError(t *testing.T, body []byte) kv.Error {
	t.Helper()
	var doc errorJSON
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		t.Errorf("error body %q: %v", body, err)
	}
	return kv.Error{Code: doc.Error.Code, Message: doc.Error.Message, Field: doc.Error.Field}
}

// serveHandler runs a server with this package's limits on a loopback port until the test ends.
func serveHandler(t *testing.T, h http.Handler, o ServerOptions) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := NewServer(h, o)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(LimitListener(l, 0)) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != http.ErrServerClosed {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// wire is a client that sends the bytes it is told to.
type wire struct {
	t *testing.T
	net.Conn
	in *bufio.Reader
}

func dial(t *testing.T, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	// A guard against a hanging test, not a measurement.
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &wire{t, c, bufio.NewReader(c)}
}

func (c *wire) send(bytes string) {
	c.t.Helper()
	if _, err := io.WriteString(c, bytes); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads one answer to a request with the given method, with its whole body.
func (c *wire) answer(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("body after %d bytes: %v", len(body), err)
	}
	return resp, string(body)
}

// ask sends one request without a body and reads the answer.
func (c *wire) ask(method, target string) (*http.Response, string) {
	c.t.Helper()
	c.send(method + " " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")
	return c.answer(method)
}
