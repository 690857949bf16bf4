package raftstore

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// noticeDelay is what the library is given to tell of a commit itself. Under load it does, with the next entries, and
	// then notices cost nothing; where a member is near, commits come faster than this and share a notice.
	noticeDelay = 2 * time.Millisecond
	// maxNotices to one member are under way at once. Commits that come meanwhile make up the next one. A member a
	// continent away, 200 ms, then hears of a commit at the latest 50 ms after it.
	maxNotices = 4
	// maxNoticeEntries and maxNoticeBytes bound the new entries that a notice brings along. Whoever lacks more than that is
	// the library's to bring up to date.
	maxNoticeEntries = 32
	maxNoticeBytes   = 64 << 10
	// maxAgainBytes bounds what is said again although a request that is under way says it, so that a notice that arrives
	// before that request still counts.
	maxAgainBytes = 8 << 10
)

// announcer tells the members of a commit at once, while this node leads. The library tells them with its next request: on
// its own only after CommitTimeout, and, because it has one request at a time under way to each member, not before the
// last one has been answered, up to a round trip later. Readers beside a member far away would wait for that.
//
//	library:  entry 7 ──────────────► ack 7    entry 8, commit 7 ─────────► ack 8        commit 8 …
//	notices:              commit 7 ───►   entry 8, commit 8 ───►
//
// A notice is an AppendEntries request like any other, made of this leader's own log in its own term, so a member may get
// it late, twice, or in any order with the library's (Ongaro and Ousterhout, "In Search of an Understandable Consensus
// Algorithm", 5.3: the requests are idempotent). Its commit index never lies beyond its own last entry: a member takes
// min(commit index, its own last entry), and what it holds beyond ours was not compared with our log.
type announcer struct {
	s      *Store
	commit atomic.Uint64 // the newest entry that was given to the own state
	kick   chan struct{} // holds one token when commit has moved
	done   chan delivery

	// What follows belongs to run.
	term uint64
	by   map[raft.ServerID]*told
}

// told is what one member has been told by notices in this term.
type told struct {
	commit uint64 // the newest commit index on its way or there
	last   uint64 // the newest entry
	flying int
	warm   bool // there are connections
	// careful says that it lacked what a request under way would have brought: go on from what it has acknowledged.
	careful bool
	// failedAt is when a notice was sent that failed; nothing more is sent until the library has got through again.
	failed   bool
	failedAt time.Duration
}

// delivery is how a notice went.
type delivery struct {
	to      *told
	careful bool
	at      time.Duration
	success bool
	err     error
}

func newAnnouncer(s *Store) *announcer {
	return &announcer{s: s, kick: make(chan struct{}, 1), done: make(chan delivery), by: make(map[raft.ServerID]*told)}
}

// committed is told of every entry that is about to be applied. It does not block.
func (a *announcer) committed(index uint64) {
	a.commit.Store(index)
	a.wake()
}

// wake has run look for members that may be told more than they were.
func (a *announcer) wake() {
	select {
	case a.kick <- struct{}{}:
	default:
	}
}

// run announces until ctx ends.
func (a *announcer) run(ctx context.Context) {
	for {
		select {
		case <-a.kick:
			select {
			case <-time.After(noticeDelay):
			case <-ctx.Done():
			}
		case d := <-a.done:
			a.settle(d)
		case <-ctx.Done():
			return
		}
		a.announce(ctx)
	}
}

// announce sends a notice to every member that may be told more than it was.
func (a *announcer) announce(ctx context.Context) {
	term, ok := a.s.leaderTerm()
	if !ok {
		return
	}
	if term != a.term {
		a.term, a.by = term, make(map[raft.ServerID]*told)
	}
	commit := a.commit.Load()
	for _, m := range a.s.configuration().Servers {
		if m.ID == raft.ServerID(a.s.opts.NodeID) {
			continue
		}
		to := a.by[m.ID]
		if to == nil {
			to = &told{}
			a.by[m.ID] = to
		}
		if to.flying >= maxNotices || (to.warm && max(to.commit, a.s.trans.carried(term, m.ID).commit) >= commit) {
			continue
		}
		req := a.request(term, m.ID, to, commit)
		if req == nil {
			continue
		}
		to.commit, to.last = req.LeaderCommitIndex, max(to.last, req.LeaderCommitIndex)
		n := 1
		if !to.warm { // as often as may be at once: connecting takes several round trips, which no later one should wait for
			n, to.warm = maxNotices-to.flying, true
		}
		to.flying += n
		careful := to.careful
		for range n {
			a.s.tasks.Go(func() { a.send(ctx, m, to, careful, req) })
		}
	}
}

// request makes the notice of a commit for one member; nil when there is nothing to say to it, or it is the library's.
func (a *announcer) request(term uint64, id raft.ServerID, to *told, commit uint64) *raft.AppendEntriesRequest {
	ack, ok := a.s.acks.of(term, id)
	if !ok || ack.match == 0 || (to.failed && ack.at <= to.failedAt) {
		return nil
	}
	to.failed = false
	from := ack.match
	if !to.careful { // it will have arrived
		from = max(from, to.last, a.s.trans.carried(term, id).last)
	}
	req := notice(a.s.cache, ack.match, from, commit)
	// A leader never rewrites its own log: what was read while it led in the term is the term's.
	if now, ok := a.s.leaderTerm(); req == nil || !ok || now != term || req.LeaderCommitIndex <= to.commit {
		return nil
	}
	self := []byte(a.s.opts.NodeID)
	req.RPCHeader = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: self, Addr: self}
	req.Term = term
	return req
}

// notice makes a request that tells of a commit to a member that has acknowledged the log up to known, and has been sent
// it up to from. What it was sent is said again where that is little. nil: the log does not hold what is needed.
func notice(log raft.LogStore, known, from, commit uint64) *raft.AppendEntriesRequest {
	known, from = min(known, commit), min(from, commit)
	req := &raft.AppendEntriesRequest{PrevLogEntry: from}
	if again, ok := entriesOf(log, known, from, maxAgainBytes); ok && known+uint64(len(again)) == from {
		req.PrevLogEntry, req.Entries = known, again
	}
	var prev raft.Log
	more, ok := entriesOf(log, from, commit, maxNoticeBytes)
	if !ok || log.GetLog(req.PrevLogEntry, &prev) != nil {
		return nil // it is far behind, or the log was cut
	}
	req.PrevLogTerm, req.Entries = prev.Term, append(req.Entries, more...)
	req.LeaderCommitIndex = lastOf(req)
	if mutNoticeBeyond {
		req.LeaderCommitIndex = commit
	}
	return req
}

// entriesOf reads the log from the entry after from up to to, or as far as the bounds allow; false when it is not there.
func entriesOf(log raft.LogStore, from, to uint64, maxBytes int) (out []*raft.Log, ok bool) {
	for bytes := 0; from < to && len(out) < maxNoticeEntries; {
		from++
		l := new(raft.Log)
		if log.GetLog(from, l) != nil {
			return nil, false
		}
		if bytes += len(l.Data) + len(l.Extensions); bytes > maxBytes {
			break
		}
		out = append(out, l)
	}
	return out, true
}

// send delivers one notice.
func (a *announcer) send(ctx context.Context, m raft.Server, to *told, careful bool, req *raft.AppendEntriesRequest) {
	d := delivery{to: to, careful: careful, at: a.s.mono()}
	d.success, d.err = a.s.trans.notice(m.ID, m.Address, req)
	result := "ok"
	switch {
	case d.err != nil:
		result = "failed"
	case !d.success:
		result = "rejected"
	}
	a.s.metrics.notices.WithLabelValues(result).Inc()
	select {
	case a.done <- d:
	case <-ctx.Done():
	}
}

// settle takes a notice's outcome. One that failed is not repeated: the library tells the same, and finds out what is wrong.
func (a *announcer) settle(d delivery) {
	d.to.flying--
	switch {
	case d.success:
		d.to.careful = false
	case d.err != nil || d.careful:
		d.to.failed, d.to.failedAt = true, max(d.at, d.to.failedAt)
		d.to.commit, d.to.last, d.to.warm = 0, 0, d.to.warm && d.err == nil
	default: // what it was to follow has not arrived yet, or never will
		d.to.careful, d.to.commit, d.to.last = true, 0, 0
	}
}
