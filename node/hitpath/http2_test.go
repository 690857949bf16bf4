package hitpath

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/api"
)

// clients are HTTP clients of each protocol.
func clients(roots *tls.Config) map[string]*http.Transport {
	protocols := func(set func(*http.Protocols)) *http.Protocols {
		p := new(http.Protocols)
		set(p)
		return p
	}
	return map[string]*http.Transport{
		"http/1.1": {TLSClientConfig: roots.Clone(), Protocols: protocols(func(p *http.Protocols) { p.SetHTTP1(true) })},
		"h2":       {TLSClientConfig: roots.Clone(), Protocols: protocols(func(p *http.Protocols) { p.SetHTTP2(true) })},
		"h2c":      {Protocols: protocols(func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })},
	}
}

// TestHTTP2 asks over every protocol, behind TLS and in clear: reads, writes, refusals and large values, many at a time.
func TestHTTP2(t *testing.T) {
	server, roots := testTLS(t)
	for _, tc := range []struct {
		name, scheme string
		config       *tls.Config
		proto        int
	}{{"http/1.1", "https", server, 1}, {"h2", "https", server, 2}, {"h2c", "http", nil, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake()
			h, counts := surfaces(f, nil, nil)
			s := New(Options{
				Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), HTTP2: api.NewServer(h, api.ServerOptions{HTTP2: true}),
				TLS: tc.config, Counts: counts,
			})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- s.Serve(api.LimitListener(l, 0)) }()
			transport := clients(roots)[tc.name]
			base := fmt.Sprintf("%s://localhost:%d", tc.scheme, l.Addr().(*net.TCPAddr).Port)
			ask := func(method, path, body string) (*http.Response, string) {
				req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return nil, ""
				}
				if body == "" {
					req.Body = nil
				}
				resp, err := transport.RoundTrip(req)
				if err != nil {
					t.Error(method, path, err)
					return &http.Response{}, ""
				}
				got, err := io.ReadAll(resp.Body)
				if err = errors.Join(err, resp.Body.Close()); err != nil || resp.ProtoMajor != tc.proto {
					t.Errorf("%s %s: %s, %v", method, path, resp.Proto, err)
				}
				return resp, string(got)
			}
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					for _, key := range []string{"k", "16K", "300K", "stream", "empty"} {
						if _, got := ask("GET", "/v1/kv/default/"+key, ""); got != string(f.held[key].Bytes) && key != "stream" {
							t.Errorf("%s: %d bytes", key, len(got))
						}
					}
					if resp, got := ask("GET", "/v1/kv/default/none", ""); resp.StatusCode != 404 || !strings.Contains(got, "key_not_found") {
						t.Error(resp.Status, got)
					}
					if resp, _ := ask("PUT", "/v1/kv/default/new", strings.Repeat("v", 3<<20)); resp.StatusCode != 200 {
						t.Error(resp.Status)
					}
				})
			}
			all.Wait()
			if hits := f.hits.Load(); (hits > 0) != (tc.proto == 1) {
				t.Errorf("%d hits on the path", hits)
			}
			transport.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := s.Shutdown(ctx); err != nil {
				t.Error(err)
			}
			if err := <-done; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		})
	}
}

// TestPreface: HTTP/2 by prior knowledge begins a connection, however it is cut; after a request it is what net/http alone
// says it is.
func TestPreface(t *testing.T) {
	f := newFake()
	h, counts := surfaces(f, nil, nil)
	s := New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), HTTP2: api.NewServer(h, api.ServerOptions{HTTP2: true}), Counts: counts,
	})
	l := newListener()
	serve(t, s, api.LimitListener(l, 0))
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // a frame without any
	const whole = preface + "\r\nSM\r\n\r\n" + settings
	for at := range len(whole) {
		c := pipes{l}.dial()
		go func() { // the server may not read all of it
			for _, piece := range []string{whole[:at], whole[at:]} {
				_, _ = io.WriteString(c, piece)
			}
		}()
		var head [9]byte // of the frame with the server's settings
		if _, err := io.ReadFull(c, head[:]); err != nil || head[3] != 4 || head[0] != 0 {
			t.Errorf("cut at %d: %q, %v", at, head, err)
		}
		_ = c.Close() // enough has come
	}
	got := l.send(t, [][]byte{[]byte(get("/v1/kv/default/k") + whole)})
	if !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") || strings.Count(got, "HTTP/1.1 ") != 2 {
		t.Errorf("HTTP/2 after a request: %q", got)
	}
}
