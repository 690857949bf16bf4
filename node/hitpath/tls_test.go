package hitpath

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
)

// testTLS makes a certificate for localhost that is valid in virtual time too, and what both sides need of it.
func testTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	server = &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}},
	}
	return server, &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: "localhost"}
}

// duplex is one end of a connection whose directions end one by one, and that never loses what was sent before an end.
type duplex struct {
	*io.PipeReader
	*io.PipeWriter
}

func newDuplex() (client, server duplex) {
	fromServer, toClient := io.Pipe()
	fromClient, toServer := io.Pipe()
	return duplex{fromServer, toServer}, duplex{fromClient, toClient}
}

func (d duplex) Close() error {
	return errors.Join(d.PipeReader.Close(), d.PipeWriter.Close())
}

func (d duplex) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (d duplex) RemoteAddr() net.Addr             { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 2} }
func (d duplex) SetDeadline(time.Time) error      { return nil }
func (d duplex) SetReadDeadline(time.Time) error  { return nil }
func (d duplex) SetWriteDeadline(time.Time) error { return nil }

// sendTLS plays a client that sends pieces over TLS and then ends its side, with a goodbye or without, and returns what it
// was sent, masked.
func (l *listener) sendTLS(t testing.TB, config *tls.Config, rude bool, pieces ...string) string {
	t.Helper()
	near, far := newDuplex()
	l.conns <- far
	c := tls.Client(near, config)
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	var sent sync.WaitGroup
	sent.Go(func() { // a server that has heard enough closes: what it has answered is what is looked at
		for _, p := range pieces {
			if _, err := io.WriteString(c, p); err != nil {
				return
			}
		}
		if rude {
			_ = near.PipeWriter.Close()
		} else {
			_ = c.CloseWrite()
		}
	})
	guard := time.AfterFunc(time.Minute, func() { _ = near.Close() })
	got, err := io.ReadAll(c)
	if !guard.Stop() {
		t.Errorf("sent %.300q\nthe connection was open after a minute: %v", pieces, err)
	}
	_ = near.Close() // it has ended
	sent.Wait()
	if err != nil {
		got = append(got, "\ncut: "+err.Error()...)
	}
	return masked(string(got))
}

// TestTLSDifferential sends every request over TLS to the path and to net/http alone; the answers must be the same bytes,
// and end with the same goodbye.
func TestTLSDifferential(t *testing.T) {
	server, client := testTLS(t)
	f := newFake()
	reg := prometheus.NewRegistry()
	h, counts := surfaces(f, checker{}, reg)
	alone, _ := surfaces(f, checker{}, nil)
	path := New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), HTTP2: api.NewServer(h, api.ServerOptions{HTTP2: true}),
		TLS: server, Accepts: checker{}.accepts, Counts: counts, Metrics: reg,
	})
	fast, std := newListener(), newListener()
	serve(t, path, api.LimitListener(fast, 0))
	onlyOld := server.Clone()
	onlyOld.NextProtos = []string{"http/1.1"}
	serve(t, api.NewServer(alone, api.ServerOptions{}), api.LimitListener(tls.NewListener(std, onlyOld), 0))
	named := client.Clone()
	named.NextProtos = []string{"http/1.1"}
	same := func(t *testing.T, config *tls.Config, rude bool, pieces ...string) {
		t.Helper()
		want, got := std.sendTLS(t, config, rude, pieces...), fast.sendTLS(t, config, rude, pieces...)
		if got != want {
			t.Fatalf("sent %.1500q\nthe path answers\n%.1500q\nnet/http alone\n%.1500q", pieces, got, want)
		}
	}
	hit := get("/v1/kv/default/k", auth)
	for _, tc := range requests() {
		if len(tc.text) > 1<<16 || strings.HasSuffix(tc.name, "broken") {
			continue // net/http takes half a second to refuse it
		}
		t.Run(tc.name, func(t *testing.T) {
			if tc.how != "hit" {
				same(t, named, false, hit+tc.text, hit)
				return
			}
			before := f.hits.Load()
			same(t, client, false, tc.text+tc.text)
			if got := f.hits.Load() - before; got != 2 {
				t.Errorf("%d hits", got)
			}
		})
	}
	for at := 0; at < len(hit); at += 1 + at%9 {
		same(t, client, false, hit[:at], hit[at:])
		same(t, client, true, hit+hit[:at])
	}
	same(t, client, false, preface+"\r\nSM\r\n\r\n") // behind TLS, HTTP/2 is negotiated
	same(t, client, false, strings.Repeat(hit+get("/v1/kv/default/20K", auth), 100))
}

// serve runs a server until the test ends.
func serve(t testing.TB, s server, l net.Listener) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// inBubbleTLS runs a path behind TLS in virtual time, with three connections at most.
func inBubbleTLS(t *testing.T, test func(t *testing.T, s *Server, f *fake, l pipes, client *tls.Config)) {
	server, client := testTLS(t)
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		h, counts := surfaces(f, nil, nil)
		s := New(Options{
			Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), HTTP2: api.NewServer(h, api.ServerOptions{HTTP2: true}),
			TLS: server, Counts: counts,
		})
		l := pipes{newListener()}
		done := make(chan error, 1)
		go func() { done <- s.Serve(api.LimitListener(l, 3)) }()
		test(t, s, f, l, client)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

// TestTLSLimits: a handshake has the time of a head, and after it the limits are those of a connection in clear.
func TestTLSLimits(t *testing.T) {
	inBubbleTLS(t, func(t *testing.T, _ *Server, _ *fake, l pipes, client *tls.Config) {
		within(t, closedAfter(t, l.dial()), 10*time.Second) // says nothing

		slow := l.dial() // a byte a second of what would become a handshake
		began := time.Now()
		for _, b := range append([]byte{0x16, 3, 1, 0, 200}, make([]byte, 200)...) {
			if _, err := slow.Write([]byte{b}); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		within(t, time.Since(began), 10*time.Second)

		open := func() net.Conn {
			c := tls.Client(l.dial(), client)
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			return c
		}
		within(t, closedAfter(t, open()), 10*time.Second) // the handshake is all it does

		idle := open()
		for range 2 {
			if got := ask(t, idle, get("/v1/kv/default/k")); got != "200 OK value of k" {
				t.Fatal(got)
			}
			time.Sleep(80 * time.Second)
		}
		ask(t, idle, get("/v1/kv/default/k"))
		within(t, closedAfter(t, idle), 90*time.Second)

		deaf := open()
		if _, err := io.WriteString(deaf, get("/v1/kv/default/300K")); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if _, err := io.WriteString(deaf, "x"); err == nil {
			t.Fatal("the path reads on while its answer is not taken")
		}
		within(t, time.Since(began), 30*time.Second)
	})
}

// TestTLSConnectionLimit: handshakes count as connections, and so do those that were given to net/http.
func TestTLSConnectionLimit(t *testing.T) {
	inBubbleTLS(t, func(t *testing.T, _ *Server, _ *fake, l pipes, client *tls.Config) {
		silent := l.dial()
		h1 := tls.Client(l.dial(), client)
		ask(t, h1, get("/v1/kv/default")) // a list: net/http has it now
		both := client.Clone()
		both.NextProtos = []string{"h2"}
		h2 := tls.Client(l.dial(), both)
		if err := h2.Handshake(); err != nil || h2.ConnectionState().NegotiatedProtocol != "h2" {
			t.Fatal(h2.ConnectionState().NegotiatedProtocol, err)
		}
		for i, end := range []net.Conn{silent, h1, h2} {
			further := tls.Client(l.dial(), client)
			if err := further.Handshake(); err == nil {
				t.Fatalf("a connection too many was accepted, beside number %d", i)
			}
			_, _ = further.Close(), end.Close() // the other side may be gone
			synctest.Wait()
			c := tls.Client(l.dial(), client)
			ask(t, c, get("/v1/kv/default/k"))
			defer func() { _ = c.Close() }() // the server may have been closed by then
		}
	})
}

// TestTLSShutdown: an idle connection is ended with a goodbye, at once; one that is being answered is answered.
func TestTLSShutdown(t *testing.T) {
	inBubbleTLS(t, func(t *testing.T, s *Server, f *fake, l pipes, client *tls.Config) {
		idle, busy := tls.Client(l.dial(), client), tls.Client(l.dial(), client)
		ask(t, idle, get("/v1/kv/default/k"))
		if _, err := io.WriteString(busy, get("/v1/kv/default/slow")); err != nil {
			t.Fatal(err)
		}
		fresh := l.dial()
		synctest.Wait()
		began := time.Now()
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(t.Context()) }()
		closedAfter(t, idle) // an end without a goodbye would be io.ErrUnexpectedEOF
		closedAfter(t, fresh)
		if d := time.Since(began); d > 0 {
			t.Errorf("idle connections are closed after %v", d)
		}
		time.Sleep(3 * time.Second)
		close(f.waiting)
		resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatal(resp, err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
		closedAfter(t, busy)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestTLSRefusesClear: a client that speaks HTTP in clear is told what to do, any other is not talked to.
func TestTLSRefusesClear(t *testing.T) {
	inBubbleTLS(t, func(t *testing.T, _ *Server, _ *fake, l pipes, _ *tls.Config) {
		for _, first := range []string{get("/v1/kv/default/k"), "PUT /v1/kv/default/k HTTP/1.1\r\n", preface + "\r\nSM\r\n\r\n"} {
			c := l.dial()
			go func() { _, _ = io.WriteString(c, first) }() // it may be read in part only
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(first, err)
			}
			body, _ := io.ReadAll(resp.Body) // as far as it came
			if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "https://") {
				t.Errorf("%q: %d %s", first, resp.StatusCode, body)
			}
			_ = c.Close() // it has ended
		}
		c := l.dial()
		go func() { _, _ = io.WriteString(c, "SSH-2.0-nobody\r\n") }() // it may be read in part only
		closedAfter(t, c)
	})
}
