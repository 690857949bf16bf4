package raftstore

import (
	"context"
	"sync"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// gateWait is how long a write waits for the mesh to agree on a kind of command: a new leader asks the others within about
// a second.
const gateWait = 3 * time.Second

// gate holds back kinds of commands that some member may not know: an unknown command stops the member that must apply it,
// and one that was applied differently would part it from the others. The leader asks every voter and learner for the
// highest kind that it knows; when all of them have answered, in one term, it writes the lowest answer into the log
// (KindAllow). From then on that holds for ever, whoever leads and whoever is down, because it is part of the state.
type gate struct {
	mu     sync.Mutex    // guards opened
	opened chan struct{} // closed and replaced when more may be allowed
}

func newGate() *gate { return &gate{opened: make(chan struct{})} }

func (g *gate) changed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	close(g.opened)
	g.opened = make(chan struct{})
}

func (g *gate) wait() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

// admit returns once every kind of ops may be proposed.
func (s *Store) admit(ctx context.Context, ops []command.Op) error {
	var highest command.Kind
	for i := range ops {
		if k := ops[i].Kind; k != command.KindAllow {
			highest = max(highest, k)
		}
	}
	if highest <= s.set.baseKinds {
		return nil
	}
	timeout := time.NewTimer(gateWait)
	defer timeout.Stop()
	for {
		opened := s.gate.wait()
		if highest <= s.state.AllowedKinds() {
			return nil
		}
		select {
		case <-opened:
		case <-timeout.C:
			return &kv.Error{
				Code: kv.CodeUnavailable, RetryAfter: gateWait,
				Message: "not every voter and learner is known to run a release that can do this; upgrade them, or bring back those that are down",
			}
		case <-ctx.Done():
			return kv.Errorf(kv.CodeDeadlineExceeded, "the write waited until its deadline for all voters to say that they know it; nothing was written")
		case <-s.dead:
			return errClosed()
		}
	}
}

// allow lets kinds into the log that every member has said it knows.
func (d *duties) allow(ctx context.Context) error {
	s := d.s
	allowed := s.state.AllowedKinds()
	if allowed >= s.set.kinds {
		return nil
	}
	lowest := s.set.kinds
	for _, srv := range s.configuration().Servers {
		info, fresh := s.members.of(s, string(srv.ID))
		if !fresh {
			return nil // it will answer, or be removed
		}
		lowest = min(lowest, info.Kinds)
	}
	if lowest <= max(allowed, s.set.baseKinds) {
		return nil
	}
	_, err := d.propose(ctx, command.Op{Kind: command.KindAllow, Limit: uint32(lowest)})
	return err
}
