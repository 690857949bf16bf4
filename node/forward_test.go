package node

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// leaderDouble answers forwarded writes when it is let, each with the number in its key as the revision; what begins with
// "bad" fails by itself.
type leaderDouble struct {
	mu     sync.Mutex
	groups [][]string // the keys of each request
	let    chan struct{}
	err    error
}

func (l *leaderDouble) call(ctx context.Context, _ string, c peer.Call) (*peer.Reply, error) {
	batches, err := readProposals(c.Body)
	if err != nil {
		return nil, err
	}
	var keys []string
	var res wire.ProposeResult
	for _, b := range batches {
		key := b.Ops[0].Key
		keys = append(keys, key)
		rev, err := strconv.Atoi(key)
		if err != nil {
			res.Outcomes = append(res.Outcomes, wire.ProposeOutcome{Failed: true, Failure: peer.NewFailure(kv.Errorf(kv.CodeDiskFull, "%s", key))})
			continue
		}
		res.Outcomes = append(res.Outcomes, wire.ProposeOutcome{Revision: kv.Revision(rev), Ops: make([]wire.OpResult, len(b.Ops))})
	}
	l.mu.Lock()
	l.groups = append(l.groups, keys)
	l.mu.Unlock()
	select {
	case <-l.let:
	case <-ctx.Done():
		return nil, &peer.CallError{MaybeSent: true, Err: context.Cause(ctx)}
	}
	if l.err != nil {
		return nil, l.err
	}
	body, err := peer.Encode(&res)
	return &peer.Reply{Result: body}, err
}

func forwardPut(key string) []command.Op {
	return []command.Op{{Kind: command.KindPut, Namespace: kv.NamespaceID{1}, Key: key, Value: []byte("v")}}
}

// TestForward: writes that come together travel together, in few requests and never more than may be on their way, and
// each gets its own outcome.
func TestForward(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leaderDouble{let: make(chan struct{})}
		f := newForwarder(l.call, func() kv.Epoch { return firstEpoch }, 10*time.Second)
		const n = 1000
		var wg sync.WaitGroup
		for i := 1; i <= n; i++ {
			wg.Go(func() {
				key := strconv.Itoa(i)
				if i%100 == 0 {
					key = "bad" + key
				}
				res, err := f.propose(t.Context(), "leader", forwardPut(key))
				switch {
				case i%100 == 0 && kv.CodeOf(err) != kv.CodeDiskFull:
					t.Errorf("%s: %v", key, err)
				case i%100 != 0 && (err != nil || res.Revision != kv.Revision(i) || len(res.Ops) != 1):
					t.Errorf("%s: %+v, %v", key, res, err)
				}
			})
		}
		synctest.Wait()
		l.mu.Lock()
		if len(l.groups) > forwardInFlight {
			t.Errorf("%d requests are on their way", len(l.groups))
		}
		l.mu.Unlock()
		close(l.let)
		wg.Wait()
		seen := 0
		for _, g := range l.groups {
			if seen += len(g); len(g) > forwardGroup {
				t.Errorf("%d writes in one request", len(g))
			}
		}
		if seen != n || len(l.groups) > n/4 {
			t.Errorf("%d writes in %d requests", seen, len(l.groups))
		}
		f.close()
		f.mu.Lock()
		if f.bytes != 0 || len(f.lanes) != 0 {
			t.Errorf("%d bytes and %d lanes are left", f.bytes, len(f.lanes))
		}
		f.mu.Unlock()
		if _, err := f.propose(t.Context(), "leader", forwardPut("1")); kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestForwardGivesUp: what was not sent is taken back and nothing of it is written; what was sent has an unknown outcome, for
// a caller that goes and when the node ends.
func TestForwardGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leaderDouble{let: make(chan struct{})}
		f := newForwarder(l.call, func() kv.Epoch { return firstEpoch }, 10*time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		outcomes := make(chan error, 2*forwardInFlight)
		for i := range forwardInFlight {
			go func() {
				_, err := f.propose(ctx, "leader", forwardPut(strconv.Itoa(i)))
				outcomes <- err
			}()
			synctest.Wait() // each goes by itself
		}
		late, leave := context.WithCancel(t.Context())
		go func() {
			_, err := f.propose(late, "leader", forwardPut("late"))
			outcomes <- err
		}()
		synctest.Wait()
		leave()
		if err := <-outcomes; kv.CodeOf(err) != kv.CodeDeadlineExceeded {
			t.Errorf("not sent: %v", err)
		}
		cancel()
		for range forwardInFlight {
			if err := <-outcomes; kv.CodeOf(err) != kv.CodeOutcomeUnknown {
				t.Errorf("sent: %v", err)
			}
		}
		go func() {
			_, err := f.propose(t.Context(), "other", forwardPut("1"))
			outcomes <- err
		}()
		synctest.Wait()
		f.close()
		var call *peer.CallError
		if err := <-outcomes; !errors.As(err, &call) || !call.MaybeSent {
			t.Errorf("cut off: %v", err)
		}
		for _, g := range l.groups {
			for _, key := range g {
				if key == "late" {
					t.Error("what was taken back was sent")
				}
			}
		}
	})
}
