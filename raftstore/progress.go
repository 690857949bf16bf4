package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// wellBehind is how many entries a member may be behind the end of the log and still count as well: those of a busy second.
const wellBehind = 1024

// Progress is how a member follows the leader, as the leader sees it.
type Progress struct {
	Match  uint64        // its log agrees up to here
	Behind uint64        // entries to the end of the leader's log
	Heard  time.Duration // how long ago it answered last; since the leader began to lead when it never did
	// Well is how long it has answered without a gap and kept close to the end of the log; 0 = it does not now.
	Well time.Duration
	// Stable and Dead are what that means for its vote: it may be given one, or be replaced.
	Stable, Dead bool
}

// progress is what a leader remembers of the members in one term.
type progress struct {
	mu    sync.Mutex // guards all below
	term  uint64
	began time.Duration                   // monotonic clock
	well  map[raft.ServerID]time.Duration // since when a member has been well
}

// watchProgress looks at the members with every heartbeat while this node leads in term.
func (s *Store) watchProgress(ctx context.Context, term uint64) {
	p := s.progress
	p.mu.Lock()
	p.term, p.began, p.well = term, s.mono(), make(map[raft.ServerID]time.Duration)
	p.mu.Unlock()
	tick := time.NewTicker(s.set.heartbeat)
	defer tick.Stop()
	for {
		s.lookAtMembers(term)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Store) lookAtMembers(term uint64) {
	last, now := s.raft.LastIndex(), s.mono()
	p := s.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range s.configuration().Servers {
		a, ok := s.acks.of(term, m.ID)
		if !ok || !s.heard(a) || last > a.match+wellBehind {
			delete(p.well, m.ID)
		} else if _, since := p.well[m.ID]; !since {
			p.well[m.ID] = now
		}
	}
}

// Progress is how a member follows; ok is false on a node that does not lead. The leader follows itself.
func (s *Store) Progress(nodeID string) (_ Progress, ok bool) {
	term, leads := s.leaderTerm()
	p := s.progress
	p.mu.Lock()
	defer p.mu.Unlock()
	if !leads || p.term != term {
		return Progress{}, false
	}
	last, now := s.raft.LastIndex(), s.mono()
	if nodeID == s.opts.NodeID {
		return Progress{Match: last, Well: now - p.began, Stable: true}, true
	}
	out := Progress{Behind: last, Heard: now - p.began}
	if a, ok := s.acks.of(term, raft.ServerID(nodeID)); ok {
		out.Match, out.Behind, out.Heard = a.match, max(last, a.match)-a.match, now-a.at
	}
	if since, ok := p.well[raft.ServerID(nodeID)]; ok {
		out.Well = max(now-since, 1)
	}
	out.Stable, out.Dead = out.Well >= s.set.stable, out.Heard >= s.set.dead
	return out, true
}
