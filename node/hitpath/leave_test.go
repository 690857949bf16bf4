package hitpath

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// patience bounds every wait for something that must happen.
const patience = 40 * time.Second

// onTCP runs a path on a real listener until the test ends, and returns a function that connects to it.
func onTCP(t *testing.T, f *fake) (s *Server, dial func() *net.TCPConn) {
	t.Helper()
	h, counts := surfaces(f, nil, nil)
	s = New(Options{
		Source: f, Handler: h, Next: api.NewServer(h, api.ServerOptions{}), Counts: counts, Metrics: prometheus.NewRegistry(),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(api.LimitListener(l, 0)) }()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return s, func() *net.TCPConn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			err = c.SetDeadline(time.Now().Add(patience))
		}
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.TCPConn)
	}
}

// endless is a large value that only others have: it comes for as long as somebody reads it.
type endless struct{ closed chan struct{} }

func (e *endless) Read(p []byte) (int, error) { return len(p), nil }

func (e *endless) Close() error {
	close(e.closed)
	return nil
}

// TestLeavesStream: when a client leaves in the middle of a value that is streamed for it, the stream ends, whoever writes.
func TestLeavesStream(t *testing.T) {
	f := newFake()
	opened := make(chan *endless, 1)
	f.cold["endless"] = api.Value{
		Epoch: epoch, Revision: 7, AsOf: 12, Tier: api.TierCentral, Size: kv.MaxValueBytes,
		Open: func(context.Context, int64, int64) (io.ReadCloser, error) {
			e := &endless{make(chan struct{})}
			opened <- e
			return e, nil
		},
	}
	_, dial := onTCP(t, f)
	for _, text := range []string{
		get("/v1/kv/default/endless"), get("/v1/kv/default/endless", "Range: bytes=1-\r\n"),
		get("/endless?urlencoded=true", "Kv-Namespace: default\r\n"),
		get("/client/v4/accounts/a/storage/kv/namespaces/" + spaceID + "/values/endless"),
	} {
		c := dial()
		send(t, c, text)
		if _, err := io.ReadFull(c, make([]byte, 100_000)); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-(<-opened).closed:
		case <-time.After(patience):
			t.Fatalf("%q: it is still being read for a client that has gone", text)
		}
	}
}

// TestLeavesFill: a read that waits for a fill ends when its client leaves, by an end of the stream or by a reset, and not when
// it stays; and one that only ends its side is answered if the answer is near.
func TestLeavesFill(t *testing.T) {
	f := newFake()
	s, dial := onTCP(t, f)
	const others = 3
	var stay []*net.TCPConn
	for range others {
		c := dial()
		send(t, c, get("/v1/kv/default/slow"))
		stay = append(stay, c)
	}
	const byReset, byEnd = 0, -1
	var leave []*net.TCPConn
	for range 2 {
		c := dial()
		send(t, c, get("/v1/kv/default/slow"))
		leave = append(leave, c)
	}
	counted(t, s, others+2)
	for i, how := range []int{byReset, byEnd} {
		if err := errors.Join(leave[i].SetLinger(how), leave[i].Close()); err != nil {
			t.Fatal(err)
		}
	}
	counted(t, s, others)
	half := dial()
	send(t, half, get("/v1/kv/default/slow"))
	if err := half.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	stay = append(stay, half)
	close(f.waiting)
	for _, c := range stay {
		if got, err := io.ReadAll(io.LimitReader(c, int64(len("HTTP/1.1 50x")))); !strings.HasPrefix(string(got), "HTTP/1.1 50") || err != nil {
			t.Errorf("answered %q, %v", got, err)
		}
		_ = c.Close() // it was answered
	}
}

// counted waits until the path has n connections.
func counted(t *testing.T, s *Server, n int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		s.mu.Lock()
		has := len(s.conns)
		s.mu.Unlock()
		switch {
		case has == n:
			return
		case time.Since(began) > patience:
			t.Fatalf("%d connections, want %d", has, n)
		}
	}
}
