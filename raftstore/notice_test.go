package raftstore

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// slowCommits is an adapt: the library tells of commits so seldom that only notices do.
func slowCommits(t *testing.T) func(string, *Options) {
	return func(_ string, o *Options) {
		set, err := o.Profile.settings()
		if err != nil {
			t.Fatal(err)
		}
		set.commit = time.Hour
		o.settings = &set
	}
}

// Every member has a write about as soon as its writer has the acknowledgement, also when nothing follows it.
func TestNoticesTellOfCommits(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.adapt = slowCommits(t)
		c.start()
		lead := c.leader()
		time.Sleep(time.Second) // connections
		for i := range 20 {
			res := c.mustPut(lead, key(i), "value")
			start := time.Now()
			c.converge(res.Revision)
			if took := time.Since(start); took > 2*noticeDelay {
				t.Errorf("write %d was everywhere after %v", i, took)
			}
			time.Sleep(time.Duration(i) * time.Millisecond)
		}
	})
}

// While a request of the library to a member is under way, nothing else of it goes there. Notices bring what comes after.
func TestNoticesBringEntries(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.adapt = slowCommits(t)
		c.start()
		lead, slow := c.leader(), c.follower()
		c.converge(c.mustPut(lead, "k", "before").Revision)
		time.Sleep(time.Second)
		release := c.net.hold(slow.opts.NodeID, lead.opts.NodeID, lead.opts.NodeID) // its answers
		for i := range maxNotices {
			res := c.mustPut(lead, key(i), "value")
			start := time.Now()
			if err := slow.State().WaitRevision(t.Context(), res.Revision); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 2*noticeDelay {
				t.Errorf("write %d reached the member after %v", i, took)
			}
		}
		release()
		c.converge(c.mustPut(lead, "k", "after").Revision)
		if got := c.get(slow, key(maxNotices-1)); got != "value" {
			t.Errorf("%q on the member", got)
		}
	})
}

// member is a log that takes requests as the library's members do.
type member struct {
	terms  []uint64 // of its entries; entry i+1 is terms[i]
	commit uint64
}

// take is what (*raft.Raft).appendEntries does.
func (m *member) take(req *raft.AppendEntriesRequest) (success bool) {
	if p := req.PrevLogEntry; p > uint64(len(m.terms)) || (p > 0 && m.terms[p-1] != req.PrevLogTerm) {
		return false
	}
	for _, l := range req.Entries {
		if l.Index <= uint64(len(m.terms)) && m.terms[l.Index-1] != l.Term {
			m.terms = m.terms[:l.Index-1]
		}
		if l.Index > uint64(len(m.terms)) {
			m.terms = append(m.terms, l.Term)
		}
	}
	m.commit = max(m.commit, min(req.LeaderCommitIndex, uint64(len(m.terms))))
	return true
}

// Whatever a member holds, notices commit nothing on it that the leader's log does not hold at that place; and when it has
// what it was sent, or when that was little, they bring it up to the commit.
func TestNoticeRequests(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	told, again := 0, 0
	for range 10_000 {
		log := raft.NewInmemStore()
		n := 1 + rng.Uint64N(120)
		term, terms := uint64(1), []uint64(nil)
		size := []int{10, 300, 5000}[rng.IntN(3)]
		for i := range n {
			if rng.IntN(20) == 0 {
				term += 2
			}
			terms = append(terms, term)
			if err := log.StoreLog(&raft.Log{Index: i + 1, Term: term, Data: make([]byte, rng.IntN(size))}); err != nil {
				t.Fatal(err)
			}
		}
		known := 1 + rng.Uint64N(n)
		from := known + rng.Uint64N(n-known+1)
		commit := 1 + rng.Uint64N(n)
		has := []uint64{known, from, known + rng.Uint64N(n-known+1)}[rng.IntN(3)] // what has arrived, an earlier leader's included
		m := &member{terms: append([]uint64(nil), terms[:has]...)}
		for range rng.IntN(2) * rng.IntN(30) { // what an earlier leader left behind
			m.terms = append(m.terms, terms[has-1]+1)
		}
		req := notice(log, known, from, commit)
		if req == nil {
			t.Fatal("no notice, although the log holds everything")
		}
		ok := m.take(req)
		for i := range m.commit {
			if i >= commit || m.terms[i] != terms[i] {
				t.Fatalf("known %d, sent %d, arrived %d, commit %d of %d: entry %d of the member is committed", known, from, has, commit, n, i+1)
			}
		}
		if len(req.Entries) > 2*maxNoticeEntries {
			t.Fatalf("%d entries", len(req.Entries))
		}
		switch {
		case !ok && has >= min(from, commit):
			t.Fatalf("known %d, sent %d, arrived %d, commit %d: refused", known, from, has, commit)
		case ok && m.commit == commit:
			told++
		}
		if ok && has < min(from, commit) {
			again++
		}
	}
	if told < 5000 || again < 500 {
		t.Errorf("%d notices told of the whole commit, %d brought what had not arrived", told, again)
	}
	cut := raft.NewInmemStore()
	if err := cut.StoreLog(&raft.Log{Index: 9, Term: 1}); err != nil {
		t.Fatal(err)
	}
	if notice(cut, 7, 7, 9) != nil {
		t.Error("a notice although the log was cut")
	}
}

// What becomes of a notice decides how the member is told next.
func TestNoticeOutcomes(t *testing.T) {
	a := &announcer{}
	fresh := func() *told { return &told{commit: 9, last: 9, flying: 1, warm: true} }
	to := fresh()
	a.settle(delivery{to: to, success: true})
	if to.flying != 0 || to.commit != 9 || to.careful || to.failed {
		t.Errorf("after a success: %+v", to)
	}
	to = fresh()
	a.settle(delivery{to: to})
	if to.commit != 0 || to.last != 0 || !to.careful || to.failed || !to.warm {
		t.Errorf("after a refusal it is told again, from what it has acknowledged: %+v", to)
	}
	to.flying = 1
	a.settle(delivery{to: to, careful: true, at: 5})
	if !to.failed || to.failedAt != 5 {
		t.Errorf("after a refusal of that it is the library's: %+v", to)
	}
	to = fresh()
	a.settle(delivery{to: to, at: 7, err: errors.New("reset")})
	if !to.failed || to.failedAt != 7 || to.warm || to.commit != 0 {
		t.Errorf("after an error it is the library's, and needs new connections: %+v", to)
	}
}
