package node

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// TestReadIndexShares: reads that come together share one question, none shares one that was sent before it came, and few
// are on their way at a time.
func TestReadIndexShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		asked := 0
		let := make(chan struct{})
		r := newReadIndex(func(ctx context.Context) (wire.ProbeResult, error) {
			mu.Lock()
			asked++
			rev := kv.Revision(asked)
			mu.Unlock()
			select {
			case <-let:
			case <-ctx.Done():
			}
			return wire.ProbeResult{Revision: rev, Leader: true}, ctx.Err()
		})
		var wg sync.WaitGroup
		read := func(n int, least, most kv.Revision) {
			for range n {
				wg.Go(func() {
					res, err := r.ask(t.Context())
					if err != nil || res.Revision < least || res.Revision > most {
						t.Errorf("question %d, want %d to %d: %v", res.Revision, least, most, err)
					}
				})
			}
			synctest.Wait()
		}
		for i := range readIndexInFlight { // each is sent before the next one comes
			read(1, kv.Revision(i+1), kv.Revision(i+1))
		}
		read(100, readIndexInFlight+1, readIndexInFlight+1) // wait for their turn together
		mu.Lock()
		if asked != readIndexInFlight {
			t.Errorf("%d questions are on their way", asked)
		}
		mu.Unlock()
		close(let)
		wg.Wait()
		if asked != readIndexInFlight+1 {
			t.Errorf("%d questions for %d reads", asked, readIndexInFlight+100)
		}
		read(1, readIndexInFlight+2, readIndexInFlight+2)
		r.close()
		if _, err := r.ask(t.Context()); kv.CodeOf(err) != kv.CodeUnavailable {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestReadIndexEnds: a leader that never answers costs the limit of one question, and whoever gives up earlier leaves the
// others waiting. An answer of a node that does not lead is none.
func TestReadIndexEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leads := false
		r := newReadIndex(func(ctx context.Context) (wire.ProbeResult, error) {
			if !leads {
				<-ctx.Done()
				return wire.ProbeResult{}, ctx.Err()
			}
			return wire.ProbeResult{Revision: 1}, nil
		})
		short, cancel := context.WithTimeout(t.Context(), probeCall/2)
		defer cancel()
		began := time.Now()
		var wg sync.WaitGroup
		for ctx, want := range map[context.Context]time.Duration{short: probeCall / 2, t.Context(): probeCall} {
			wg.Go(func() {
				if _, err := r.ask(ctx); err == nil || time.Since(began) != want {
					t.Errorf("%v after %v, want an error after %v", err, time.Since(began), want)
				}
			})
		}
		wg.Wait()
		leads = true
		if _, err := r.ask(t.Context()); kv.CodeOf(err) != kv.CodeNotLeader {
			t.Errorf("an answer of a node that does not lead: %v", err)
		}
		r.close()
	})
}

// TestReadIndexIsApplied: a state that has not applied what the leader has confirmed gives no answer, until it has.
func TestReadIndexIsApplied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newVoterRig(t)
		r.propose("1")
		r.follow()
		r.hold.Store(true)
		var wrote sync.WaitGroup
		wrote.Go(func() { r.propose("2") })
		w := r.follow() // committed, and not shown to readers yet
		args := &wire.FillArgs{Namespace: r.ns, Key: "k", Epoch: firstEpoch}
		if res, body, err := r.upTo(t.Context(), args, w); !errors.Is(err, errNotHere) {
			t.Errorf("answered %q as of %d, %d is confirmed: %v", body, res.AsOf, w, err)
		}
		time.AfterFunc(applyWait/2, func() { close(r.let) })
		if res, body, err := r.upTo(t.Context(), args, w); err != nil || string(body) != "2" || res.AsOf != w {
			t.Errorf("%+v %q: %v", res, body, err)
		}
		wrote.Wait()
	})
}
