package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Leader is the node id of the leader as far as this node knows, "" when it knows none; self says that it is this node.
// While its log does not answer a node knows nothing: it is cut off from the others, who elect one of themselves.
func (s *Store) Leader() (nodeID string, self bool) {
	if s.dog.stalled() {
		return "", false
	}
	_, id := s.raft.LeaderWithID()
	return string(id), string(id) == s.opts.NodeID && s.raft.State() == raft.Leader
}

// LeaderChanged returns a channel that is closed when Leader may give another answer than it did before the call.
func (s *Store) LeaderChanged() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *Store) leaderMayHaveChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// watchLeadership runs runAsLeader exactly while Raft says that this node leads.
func (s *Store) watchLeadership(ctx context.Context) {
	for {
		select {
		case leads := <-s.notify:
			for leads {
				leads = s.leadUntilTold(ctx)
			}
		case <-ctx.Done():
			return
		}
	}
}

// leadUntilTold leads until Raft's next word, which it returns, or until ctx ends.
func (s *Store) leadUntilTold(ctx context.Context) (leads bool) {
	mine, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.runAsLeader(mine) })
	select {
	case leads = <-s.notify:
	case <-ctx.Done():
	}
	return leads
}

// runAsLeader is this node's leadership of one term. It returns when ctx ends, and leaves nothing behind.
func (s *Store) runAsLeader(ctx context.Context) {
	term, ok := s.applyOwnEntry(ctx)
	if !ok {
		return
	}
	s.opts.Logger.Info("leading", "term", term)
	defer s.opts.Logger.Info("no longer leading", "term", term)

	l := newLeadership(s, term)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.run(ctx) })
	wg.Go(func() { s.watchProgress(ctx, term) })

	s.leads.Store(l)
	s.leaderMayHaveChanged()
	defer s.leaderMayHaveChanged()
	defer s.leads.Store(nil)

	duties := newDuties(s)
	tick := time.NewTicker(s.set.duty)
	defer tick.Stop()
	for {
		s.notices.wake() // members that have just been reached
		if err := duties.perform(ctx); err != nil && ctx.Err() == nil {
			s.opts.Logger.Warn("a duty of the leader has to wait", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ownEntryRetry is the pause before the next try to have an entry of the own term committed.
const ownEntryRetry = 20 * time.Millisecond

// applyOwnEntry waits until an entry of this leader's own term has been applied, and returns that term. Only from then on
// does the commit index cover everything that earlier leaders acknowledged.
func (s *Store) applyOwnEntry(ctx context.Context) (uint64, bool) {
	for {
		before, ok := s.leaderTerm()
		if !ok {
			return 0, false
		}
		err := s.await(ctx, func() raft.Future { return s.raft.Barrier(0) })
		after, ok := s.leaderTerm()
		switch {
		case !ok || ctx.Err() != nil:
			return 0, false
		case err == nil && before == after:
			return after, true
		}
		select { // a hand-over that failed, or two elections during the barrier
		case <-time.After(ownEntryRetry):
		case <-ctx.Done():
			return 0, false
		}
	}
}
