package api

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipeListener hands out the server's ends of in-memory connections, so that deadlines run in virtual time.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// dial returns the client's end.
func (l *pipeListener) dial() net.Conn {
	client, server := net.Pipe()
	l.conns <- server
	return client
}

// serveVirtual runs a server for h until the test ends. Call it inside a bubble.
func serveVirtual(t *testing.T, h http.HandlerFunc) *pipeListener {
	t.Helper()
	l := newPipeListener()
	srv := NewServer(h, ServerOptions{})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(LimitListener(l, 2)) }()
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l
}

// upload starts a PUT and sends a byte every pause, count times.
func upload(c net.Conn, count int, pause time.Duration) error {
	_, err := fmt.Fprintf(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", count)
	for i := 0; i < count && err == nil; i++ {
		time.Sleep(pause)
		_, err = c.Write([]byte("x"))
	}
	return err
}

func TestBodyDeadlineMovesWithProgress(t *testing.T) {
	for name, tc := range map[string]struct {
		pause time.Duration
		ok    bool
	}{
		"slow":    {progressTimeout - time.Millisecond, true},
		"stalled": {progressTimeout + time.Millisecond, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			results := make(chan error, 1)
			c := serveVirtual(t, func(_ http.ResponseWriter, r *http.Request) {
				_, err := io.Copy(io.Discard, r.Body)
				results <- err
				_ = r.Body.Close()
				if _, err := r.Body.Read(make([]byte, 1)); err == nil {
					t.Errorf("%s: a closed body was read", name)
				}
				// The deadline must not outlive the body: it would look as if the client had gone.
				time.Sleep(time.Hour)
				if err := r.Context().Err(); tc.ok && err != nil {
					t.Errorf("%s: %v after the body", name, err)
				}
			}).dial()
			client := make(chan error, 1)
			go func() { client <- upload(c, 10, tc.pause) }()
			if err := <-results; (err == nil) != tc.ok {
				t.Errorf("%s: %v", name, err)
			}
			if _, err := c.Read(make([]byte, 1)); tc.ok && err != nil {
				t.Errorf("%s: no answer: %v", name, err)
			}
			_ = c.Close()
			<-client // ends with the connection
		})
	}
}

// TestUnreadBodyIsNotWaitedForForEver: net/http reads what a handler left, which a client may never send.
func TestUnreadBodyIsNotWaitedForForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := serveVirtual(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }).dial()
		defer c.Close()
		start := time.Now()
		if _, err := io.WriteString(c, "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx"); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if !strings.HasPrefix(string(answer), "HTTP/1.1 403") || err != nil || time.Since(start) >= progressTimeout {
			t.Errorf("%q %v after %v", answer, err, time.Since(start))
		}
	})
}

// TestRefusalsAreNotDelayed: an answer that does not depend on the body goes out while the client still holds it back.
func TestRefusalsAreNotDelayed(t *testing.T) {
	for name, request := range map[string]string{
		"expects to be asked": "PUT /v1/kv/default/k?expiration_ttl=0 HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n",
		"too large by now":    "PUT /v1/kv/default/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
	} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.MaxBody = 4 })
			c := serveVirtual(t, r.h.ServeHTTP).dial()
			defer c.Close()
			start := time.Now()
			if _, err := io.WriteString(c, request); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, len("HTTP/1.1 4xx"))); err != nil || time.Since(start) != 0 {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
		})
	}
}

func TestAnswerDeadlineMovesWithProgress(t *testing.T) {
	const size = 8 * progressBytes
	for name, tc := range map[string]struct {
		pause time.Duration // between pieces that the client takes
		ok    bool
	}{
		"slow":    {progressTimeout / 20, true}, // minutes in total
		"stalled": {progressTimeout + time.Millisecond, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			results := make(chan error, 1)
			c := serveVirtual(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", fmt.Sprint(size))
				n, err := w.Write(make([]byte, size))
				if err == nil && n != size {
					err = errors.New("short")
				}
				results <- err
			}).dial()
			client := make(chan error, 1)
			go func() {
				_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				for buf := make([]byte, progressBytes/10); err == nil; {
					time.Sleep(tc.pause)
					_, err = c.Read(buf)
				}
				client <- err
			}()
			if err := <-results; (err == nil) != tc.ok {
				t.Errorf("%s: %v", name, err)
			}
			_ = c.Close()
			<-client // ends with the connection
		})
	}
}

func TestIdleAndSlowHeadersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveVirtual(t, func(http.ResponseWriter, *http.Request) {})
		for _, tc := range []struct {
			send string
			most time.Duration
		}{
			{"GET / HTTP/1.1\r\nHost:", readHeaderTimeout},
			{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", idleTimeout},
		} {
			c := l.dial()
			start := time.Now()
			if _, err := io.WriteString(c, tc.send); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Error(err)
			}
			if d := time.Since(start); d != tc.most {
				t.Errorf("%q: ended after %v, want %v", tc.send, d, tc.most)
			}
			_ = c.Close()
		}
	})
}

// TestConnectionsAreCapped: who comes when there is no room is told so once it has asked, and one that says nothing, or
// speaks TLS, is closed. There is room as soon as somebody leaves.
func TestConnectionsAreCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := serveVirtual(t, func(http.ResponseWriter, *http.Request) {})
		first, second := l.dial(), l.dial()
		answer := func(sent string) (string, time.Duration) {
			c := l.dial()
			defer c.Close()
			began := time.Now()
			if sent != "" {
				if _, err := io.WriteString(c, sent); err != nil {
					t.Fatal(err)
				}
			}
			got, err := io.ReadAll(c)
			if err != nil {
				t.Error(err)
			}
			return string(got), time.Since(began)
		}
		const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
		got, _ := answer(request)
		for _, part := range []string{"HTTP/1.1 503 ", "\r\nRetry-After: 1\r\n", "\r\nConnection: close\r\n", `"overloaded"`, "2 connections"} {
			if !strings.Contains(got, part) {
				t.Errorf("a third connection is answered %q, without %q", got, part)
			}
		}
		if got, took := answer(""); got != "" || took != refusalTimeout {
			t.Errorf("one that says nothing is answered %q after %v", got, took)
		}
		if got, _ := answer("\x16\x03\x01"); got != "" {
			t.Errorf("one that speaks TLS is answered %q", got)
		}
		_ = first.Close()
		synctest.Wait()
		third := l.dial()
		if _, err := io.WriteString(third, request); err != nil {
			t.Fatal(err)
		}
		if n, err := io.ReadFull(third, make([]byte, len("HTTP/1.1 200"))); err != nil {
			t.Errorf("after one has left: %d bytes, %v", n, err)
		}
		_, _ = second.Close(), third.Close() // net.Pipe's never fail
	})
}

// TestRefusalsAreBounded: beyond maxRefusals at a time a connection is closed at once, and none outlives the listener.
func TestRefusalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := newPipeListener()
		l := LimitListener(inner, 1)
		accepted := make(chan error, 1)
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					accepted <- err
					return
				}
			}
		}()
		keeps := inner.dial()
		var told []net.Conn
		for range maxRefusals {
			told = append(told, inner.dial())
		}
		began := time.Now()
		last := inner.dial()
		if _, err := last.Read(make([]byte, 1)); err != io.EOF || time.Since(began) > 0 {
			t.Errorf("one too many: %v after %v", err, time.Since(began))
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, c := range told {
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after Close: %v", err)
			}
		}
		if d := time.Since(began); d > 0 {
			t.Errorf("Close takes %v", d)
		}
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept: %v", err)
		}
		_ = keeps.Close() // the listener's side is nobody's
	})
}

// TestSlotsComeBack: a connection that is closed twice gives its slot back once.
func TestSlotsComeBack(t *testing.T) {
	inner := newPipeListener()
	l := LimitListener(inner, 1)
	go func() { _ = inner.dial() }()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Close(), c.Close()
	if n := len(l.(*limitListener).slots); n != 0 {
		t.Errorf("%d slots taken", n)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestHTTP2: the same limits and streams work over TLS with h2, where deadlines belong to streams.
func TestHTTP2(t *testing.T) {
	r := newRig(t)
	ts := httptest.NewUnstartedServer(nil)
	ts.Config = NewServer(r.h, ServerOptions{HTTP2: true})
	ts.Listener = LimitListener(ts.Listener, 1)
	ts.EnableHTTP2 = true
	ts.StartTLS()
	defer ts.Close()
	value := strings.Repeat("0123456789abcdef", 1<<16)
	for _, step := range []struct {
		method, key, body string
		status            int
	}{
		{"PUT", "a%2F/../b", value, 200},
		{"GET", "a%2F/../b", "", 200},
		{"GET", "a/b", "", 404},
		{"GET", "%FF", "", 400},
	} {
		req, err := http.NewRequest(step.method, ts.URL+"/v1/kv/default/"+step.key, strings.NewReader(step.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := ts.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != step.status || resp.ProtoMajor != 2 {
			t.Errorf("%s %s: %s %s %v", step.method, step.key, resp.Proto, resp.Status, err)
		}
		if step.method == "GET" && step.status == 200 && string(body) != value {
			t.Errorf("got %d bytes, want %d", len(body), len(value))
		}
	}
}
