package raftstore

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// Confirmation says that this node was the leader, and that its state held every write acknowledged anywhere before At.
type Confirmation struct {
	// At is the monotonic clock (Options.Mono) of a moment not before the call of Confirm.
	At time.Duration
	// CommitIndex was noted after At, and has been applied.
	CommitIndex uint64
	Term        uint64
	// Of the state, which may have moved on beyond CommitIndex.
	Revision kv.Revision
	Epoch    kv.Epoch
	MeshTime int64 // unix milliseconds
}

// Confirm proves that this node is the leader now, and waits until the state has applied what was committed: what is read
// from the state after it is linearizable. It costs one round trip to the nearest majority and writes nothing; calls that
// arrive together share it.
//
// It fails with CodeNotLeader (which names the leader), CodeNoLeader, or, when ctx ends first, CodeNoQuorum.
func (s *Store) Confirm(ctx context.Context) (Confirmation, error) {
	start := s.mono()
	c, err := s.confirm(ctx)
	s.metrics.confirmed(s.mono()-start, err)
	return c, err
}

func (s *Store) confirm(ctx context.Context) (Confirmation, error) {
	l, err := s.leadership(ctx)
	if err != nil {
		return Confirmation{}, err
	}
	r := l.join()
	if r == nil {
		return Confirmation{}, s.errNotLeader()
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return Confirmation{}, errNoQuorum("leadership could not be confirmed in time")
	case <-s.dog.stall():
		return Confirmation{}, errHangs()
	case <-s.dead:
		return Confirmation{}, errClosed()
	}
	if r.err != nil {
		return Confirmation{}, r.err
	}
	last, ok := s.log.lastCommand(l.term, r.commit)
	if !ok {
		return Confirmation{}, s.errNotLeader()
	}
	if mutConfirmUnapplied {
		last = 0
	}
	if err := s.state.WaitIndex(ctx, last); err != nil {
		if errors.Is(err, state.ErrClosed) {
			return Confirmation{}, errClosed()
		}
		return Confirmation{}, errNoQuorum("the state did not catch up in time")
	}
	a := s.state.Applied()
	return Confirmation{
		At: r.at, CommitIndex: r.commit, Term: l.term,
		Revision: a.Revision, Epoch: a.Epoch, MeshTime: a.MeshTime,
	}, nil
}

func errNoQuorum(why string) error {
	return &kv.Error{Code: kv.CodeNoQuorum, RetryAfter: noLeaderRetry, Message: why}
}

// maxRounds is how many rounds may be on their way at once. A server answers one heartbeat at a time, so a round waits
// for up to two of its round trips; a few overlapping rounds keep later callers from waiting for three.
const maxRounds = 4

// round confirms leadership at one moment, for everybody who joined before it.
type round struct {
	done chan struct{} // closed when all below stands
	err  error

	at     time.Duration
	ticket uint64 // drawn after at; requests with a higher one were sent after it
	commit uint64
}

// leadership is this node's leadership in one term, from the moment when an entry of that term has been applied. It
// confirms itself; see acks for how.
//
// Why this is enough (Ongaro, "Consensus: Bridging Theory and Practice", 6.4): a voter that answers success in term T to a
// request sent after the round began had not voted in a later term when the round began. With a majority of such answers
// no later leader can have been elected before the round, so every write acknowledged before it was committed by this
// leader or its predecessors, and stands at or below the commit index noted after it began.
type leadership struct {
	s    *Store
	term uint64
	kick chan struct{} // holds one token when somebody has joined

	mu    sync.Mutex // guards all below
	next  *round     // not begun; nil when nobody has joined it
	ended bool

	mutant mutant // empty, except in the binary of the mutation tests
}

func newLeadership(s *Store, term uint64) *leadership {
	return &leadership{s: s, term: term, kick: make(chan struct{}, 1)}
}

// join returns a round that has not begun yet; nil when the leadership has ended.
func (l *leadership) join() *round {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil
	}
	if r := l.mutant.running(); mutReuseReadIndex && r != nil {
		return r
	}
	if l.next == nil {
		l.next = &round{done: make(chan struct{})}
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
	return l.next
}

// take closes the next round to joiners and begins it: first nobody joins any more, then the moment is noted.
func (l *leadership) take() *round {
	l.mu.Lock()
	r := l.next
	l.next = nil
	l.mutant.begun(r)
	l.mu.Unlock()
	if r == nil {
		return nil
	}
	r.at = l.s.mono()
	r.ticket = l.s.acks.ticket()
	r.commit = l.s.raft.CommitIndex()
	return r
}

// run confirms rounds until ctx ends.
func (l *leadership) run(ctx context.Context) {
	nudge := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { l.nudge(ctx, nudge) })
	var rounds []*round // begun, oldest first
	defer func() {
		l.end(rounds)
		wg.Wait()
	}()
	for {
		for len(rounds) < maxRounds {
			r := l.take()
			if r == nil {
				break
			}
			rounds = append(rounds, r)
			select {
			case nudge <- struct{}{}:
			default: // one is waiting, and will be sent after this round began
			}
		}
		if term, ok := l.s.leaderTerm(); !ok || term != l.term {
			return
		}
		sent := l.s.acks.quorum(l.term, l.s.voters(), raft.ServerID(l.s.opts.NodeID))
		if mutConfirmUnverified {
			sent = math.MaxUint64
		}
		confirmed := 0
		for confirmed < len(rounds) && rounds[confirmed].ticket < sent {
			close(rounds[confirmed].done)
			confirmed++
		}
		rounds = rounds[confirmed:]
		if confirmed > 0 {
			continue // there is room for the round that has been waiting
		}
		select {
		case <-l.kick:
		case <-l.s.acks.changed:
		case <-ctx.Done():
			return
		}
	}
}

// nudge makes the library send heartbeats at once. VerifyLeader's own answer is of no use here, because it counts answers
// to requests that were sent before, and learners'. It may block while the main loop of the library does, hence a
// goroutine of its own.
func (l *leadership) nudge(ctx context.Context, nudge <-chan struct{}) {
	for {
		select {
		case <-nudge:
			l.s.raft.VerifyLeader()
		case <-ctx.Done():
			return
		}
	}
}

// end fails the rounds that were begun, and the one that was not.
func (l *leadership) end(rounds []*round) {
	l.mu.Lock()
	l.ended = true
	if l.next != nil {
		rounds = append(rounds, l.next)
		l.next = nil
	}
	l.mu.Unlock()
	for _, r := range rounds {
		r.err = l.s.errNotLeader()
		close(r.done)
	}
}

// leaderTerm is the term that this node leads in. The state is read between two equal readings of the term: a leader that
// steps down never leads again in the same term.
func (s *Store) leaderTerm() (uint64, bool) {
	term := s.raft.CurrentTerm()
	return term, s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term
}

// voters of the newest configuration; learners are not among them.
func (s *Store) voters() []raft.ServerID {
	var ids []raft.ServerID
	for _, srv := range s.configuration().Servers {
		if srv.Suffrage == raft.Voter {
			ids = append(ids, srv.ID)
		}
	}
	return ids
}

// leadership waits while this node leads but has not applied an entry of its term yet.
func (s *Store) leadership(ctx context.Context) (*leadership, error) {
	for {
		changed := s.LeaderChanged()
		if s.dog.stalled() {
			return nil, errHangs()
		}
		if l := s.leads.Load(); l != nil {
			return l, nil
		}
		if _, self := s.Leader(); !self {
			return nil, s.errNotLeader()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errNoQuorum("the new leader has not committed an entry of its term yet")
		case <-s.dead:
			return nil, errClosed()
		}
	}
}
