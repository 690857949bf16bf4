package peer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// fickle is a server that answers a number of requests on each connection, then reads one more and hangs up without an
// answer: from outside, a node that died at the worst moment.
type fickle struct {
	answers  int
	requests atomic.Int64
	conns    atomic.Int64
}

func (f *fickle) serve(_ context.Context, c *Conn) {
	f.conns.Add(1)
	for i := 0; ; i++ {
		_, p, err := ReadFrame(c, nil)
		if err != nil {
			return
		}
		f.requests.Add(1)
		if h, _, err := parseRequest(p); err != nil || h.bodySize > 0 {
			if _, err := io.CopyN(io.Discard, c, h.bodySize); err != nil {
				return
			}
		}
		if i == f.answers {
			return
		}
		b, err := appendResponse(nil, responseHeader{}, nil)
		if err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func TestRetryRule(t *testing.T) {
	body := bytes.Repeat([]byte("b"), 100_000)
	for _, tc := range []struct {
		name     string
		answers  int // on each connection
		call     func() Call
		code     kv.Code // of the second call
		requests int64   // seen in all
	}{
		{"idempotent", 1, func() Call { return Call{Idempotent: true} }, "", 3},
		{"idempotent, with bytes", 1, func() Call { return Call{Idempotent: true, Body: body} }, "", 3},
		{"idempotent, a reader that can go back", 1, func() Call {
			return Call{Idempotent: true, BodyReader: bytes.NewReader(body), BodySize: int64(len(body))}
		}, "", 3},
		{"idempotent, a reader that cannot", 1, func() Call {
			return Call{Idempotent: true, BodyReader: io.MultiReader(bytes.NewReader(body)), BodySize: int64(len(body))}
		}, kv.CodeUnavailable, 2},
		{"not idempotent", 1, func() Call { return Call{} }, kv.CodeOutcomeUnknown, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, f, reg := newMesh(t, false), &fickle{answers: tc.answers}, prometheus.NewRegistry()
			m.server("n1", Options{}, func(s *Server) { s.Handle(ALPNRPC, nil, f.serve) })
			cl := m.client(ClientOptions{Metrics: reg})
			if _, err := cl.Call(patient(t), "n1", tc.call()); err != nil {
				t.Fatalf("first call: %v", err)
			}
			_, err := cl.Call(patient(t), "n1", tc.call())
			if kv.CodeOf(err) != tc.code {
				t.Errorf("second call: %v, want code %q", err, tc.code)
			}
			var ce *CallError
			if err != nil && (!errors.As(err, &ce) || !ce.MaybeSent) {
				t.Errorf("%v does not say that the request may have been received", err)
			}
			if n := f.requests.Load(); n != tc.requests {
				t.Errorf("the node saw %d requests, want %d", n, tc.requests)
			}
			if n := metric(t, reg, "kvmesh_rpc_client_retries_total"); n != float64(tc.requests-2) {
				t.Errorf("%v retries counted", n)
			}
		})
	}
	t.Run("a fresh connection is not tried twice", func(t *testing.T) {
		m, f := newMesh(t, false), &fickle{answers: 0}
		m.server("n1", Options{}, func(s *Server) { s.Handle(ALPNRPC, nil, f.serve) })
		_, err := m.client(ClientOptions{}).Call(patient(t), "n1", Call{Idempotent: true})
		if kv.CodeOf(err) != kv.CodeUnavailable || f.requests.Load() != 1 {
			t.Errorf("%v after %d requests", err, f.requests.Load())
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		m := newMesh(t, false)
		s := m.server("n1", Options{}, func(*Server) {})
		_ = s.Close(patient(t))
		_, err := m.client(ClientOptions{}).Call(patient(t), "n1", Call{})
		var ce *CallError
		if !errors.As(err, &ce) || ce.MaybeSent || kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("%v, want unavailable, not sent", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		m := newMesh(t, false)
		m.server("n1", Options{}, func(s *Server) {
			s.Handle(ALPNRPC, func(id certs.Identity) bool { return false }, (&fickle{}).serve)
		})
		_, err := m.client(ClientOptions{}).Call(patient(t), "n1", Call{Body: make([]byte, 1<<20)})
		var e *kv.Error
		if !errors.As(err, &e) || e.Code != kv.CodeUnauthorized {
			t.Errorf("%v, want what the node said", err)
		}
	})
}

// A node restarts on its old port. The connections to it are dead, and a write that must not be sent twice still gets
// through, because the client looks before it sends.
func TestARestartedNodeTakesWrites(t *testing.T) {
	m, f := newMesh(t, false), &fickle{answers: 1000}
	setup := func(s *Server) { s.Handle(ALPNRPC, nil, f.serve) }
	s := m.server("n1", Options{}, setup)
	cl := m.client(ClientOptions{})
	if _, err := cl.Call(patient(t), "n1", Call{}); err != nil {
		t.Fatal(err)
	}
	_ = s.Close(ended())
	m.server("n1", Options{Addr: s.Addr().String()}, setup)
	if _, err := cl.Call(patient(t), "n1", Call{}); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if n := f.conns.Load(); n != 2 {
		t.Errorf("%d connections", n)
	}
}

func TestPoolLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := prometheus.NewRegistry()
		var conns, open atomic.Int64
		mux := NewMux(MuxOptions{})
		mux.Handle(mWait, "wait", func(context.Context, *Request) (*Response, error) {
			time.Sleep(time.Second)
			return nil, nil
		})
		m := newMesh(t, true)
		m.server("n1", Options{}, func(s *Server) {
			s.Handle(ALPNRPC, nil, func(ctx context.Context, c *Conn) {
				conns.Add(1)
				open.Add(1)
				defer open.Add(-1)
				mux.Serve(ctx, c)
			})
		})
		cl := m.client(ClientOptions{Metrics: reg, MaxIdle: 3})
		burst := func(n int) {
			t.Helper()
			done := make(chan error)
			for range n {
				go func() { _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); done <- err }()
			}
			for range n {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
		}
		burst(5)
		synctest.Wait()
		if n := open.Load(); n != 3 || metric(t, reg, "kvmesh_rpc_client_idle_connections") != 3 {
			t.Errorf("%d connections are open after 5 at once, want 3", n)
		}
		time.Sleep(DefaultIdleTimeout - time.Minute/100)
		burst(1)
		if n := conns.Load(); n != 5 {
			t.Errorf("%d connections, want that an idle one was used just before its time", n)
		}
		time.Sleep(DefaultIdleTimeout * 5 / 4)
		synctest.Wait()
		if n := open.Load(); n != 0 {
			t.Errorf("%d connections are open after their idle time", n)
		}
		burst(2)
		if n := conns.Load(); n != 7 {
			t.Errorf("%d connections, want 7", n)
		}
		cl.Close()
		synctest.Wait()
		if n := open.Load(); n != 0 || metric(t, reg, "kvmesh_rpc_client_idle_connections") != 0 {
			t.Errorf("%d connections are open after Close", n)
		}
		if _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("a call after Close: %v", err)
		}
	})
}

// The client is closed while a call is under way: the call ends, and so does the handler.
func TestClientCloseCutsCalls(t *testing.T) {
	started, gone := make(chan struct{}), make(chan struct{})
	_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
		m.Handle(mWait, "wait", func(ctx context.Context, _ *Request) (*Response, error) {
			close(started)
			<-ctx.Done()
			close(gone)
			return nil, nil
		})
	})
	result := make(chan error)
	go func() { _, err := cl.Call(patient(t), "n1", Call{Method: mWait, Idempotent: true}); result <- err }()
	<-started
	cl.Close()
	<-gone
	if err := <-result; kv.CodeOf(err) != kv.CodeUnavailable {
		t.Errorf("the call ended with %v", err)
	}
}

// A stream that is closed early takes its connection with it; one that was read to the end gives it back.
func TestStreamClose(t *testing.T) {
	_, _, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, nil)
	for _, read := range []int64{0, 10, 100_000} {
		reply, err := cl.Call(patient(t), "n1", Call{Method: mEcho, Args: echoArgs{}, Body: make([]byte, 100_000), Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, reply.Stream, read); err != nil {
			t.Fatal(err)
		}
		_ = reply.Stream.Close()
		_ = reply.Stream.Close()
		if _, err := reply.Stream.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read after Close: %v", err)
		}
		if kept := idleConns(cl, "n1") == 1; kept != (read == 100_000) {
			t.Errorf("%d bytes read: connection kept: %v", read, kept)
		}
	}
	_, err := cl.Call(patient(t), "n1", Call{Method: mEcho, Args: echoArgs{}, Body: make([]byte, 1000), MaxReply: 999})
	if kv.CodeOf(err) != kv.CodeInternal {
		t.Errorf("a reply above the caller's limit: %v", err)
	}
}
