package peer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

func TestOverload(t *testing.T) {
	reg := prometheus.NewRegistry()
	started, release := make(chan struct{}), make(chan struct{})
	_, _, cl := rpc(t, false, MuxOptions{MaxInFlight: 2, Metrics: reg}, ClientOptions{MaxPerNode: 3}, func(m *Mux) {
		m.Handle(mWait, "wait", func(context.Context, *Request) (*Response, error) {
			started <- struct{}{}
			<-release
			return nil, nil
		})
	})
	results := make(chan error)
	for range 2 {
		go func() { _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); results <- err }()
		<-started
	}
	_, err := cl.Call(patient(t), "n1", Call{Method: mEcho, Args: echoArgs{}, Body: make([]byte, 1<<20)})
	var e *kv.Error
	if !errors.As(err, &e) || e.Code != kv.CodeOverloaded || e.RetryAfter <= 0 {
		t.Errorf("above the server's limit: %v", err)
	}
	if n := metric(t, reg, "kvmesh_rpc_requests_total", "overloaded", "echo"); n != 1 {
		t.Errorf("%v overloads counted", n)
	}
	close(release)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if _, err := cl.Call(patient(t), "n1", Call{Method: mEcho, Args: echoArgs{}}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if len(cl.nodes) != 0 {
		t.Errorf("%d nodes are remembered without requests under way", len(cl.nodes))
	}
}

// The caller's own limit makes a call wait, no longer than its deadline, and nothing is sent.
func TestMaxPerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, cl := rpc(t, true, MuxOptions{}, ClientOptions{MaxPerNode: 1}, func(m *Mux) {
			m.Handle(mWait, "wait", func(ctx context.Context, _ *Request) (*Response, error) {
				time.Sleep(time.Second)
				return nil, nil
			})
		})
		first := make(chan error)
		go func() { _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); first <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second-1)
		defer cancel()
		_, err := cl.Call(ctx, "n1", Call{Method: mWait})
		var ce *CallError
		if !errors.As(err, &ce) || ce.MaybeSent || kv.CodeOf(err) != kv.CodeDeadlineExceeded {
			t.Errorf("no turn before the deadline: %v", err)
		}
		if _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); err != nil {
			t.Errorf("its turn came: %v", err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
}

// A request that crosses with the goodbye of a node that shuts down was not looked at, and its sender knows.
func TestARequestCrossesWithTheGoodbye(t *testing.T) {
	_, s, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
		m.Handle(mWait, "wait", func(context.Context, *Request) (*Response, error) { return &Response{}, nil })
	})
	if _, err := cl.Call(patient(t), "n1", Call{Method: mWait}); err != nil {
		t.Fatal(err)
	}
	cl.pool.mu.Lock()
	idle := cl.pool.idle["n1"][0]
	cl.pool.mu.Unlock()
	idle.tcp = nil // nobody looks before sending, as when the goodbye comes a moment later
	closed := make(chan error)
	go func() { closed <- s.Close(patient(t)) }()
	if _, err := idle.br.Peek(1); err != nil {
		t.Fatal(err)
	}
	_, err := cl.Call(patient(t), "n1", Call{Method: mWait})
	if call := new(CallError); !errors.As(err, &call) || call.MaybeSent {
		t.Errorf("%v, want that it was not sent", err)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}

// Draining waits for the request that is being served, and says goodbye on idle connections.
func TestDrainingServesWhatHasBegun(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	_, s, cl := rpc(t, false, MuxOptions{}, ClientOptions{}, func(m *Mux) {
		m.Handle(mWait, "wait", func(context.Context, *Request) (*Response, error) {
			close(started)
			<-release
			return &Response{Body: []byte("done")}, nil
		})
	})
	result := make(chan *Reply)
	go func() {
		reply, err := cl.Call(patient(t), "n1", Call{Method: mWait})
		if err != nil {
			t.Error(err)
		}
		result <- reply
	}()
	<-started
	if _, err := cl.Call(patient(t), "n1", Call{Method: mEcho, Args: echoArgs{}}); err != nil { // becomes idle
		t.Fatal(err)
	}
	closed := make(chan error)
	go func() { closed <- s.Close(patient(t)) }()
	<-s.drain.Done()
	close(release)
	if reply := <-result; reply == nil || string(reply.Body) != "done" {
		t.Errorf("the request under way got %v", reply)
	}
	if err := <-closed; err != nil {
		t.Errorf("Close: %v", err)
	}
}
