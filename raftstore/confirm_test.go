package raftstore

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

func TestConfirm(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		res := c.mustPut(lead, "k", "v")
		before := lead.mono()
		got, err := lead.Confirm(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		a := lead.State().Applied()
		if got.At < before || got.Revision < res.Revision || got.Epoch != a.Epoch || got.MeshTime != a.MeshTime ||
			got.CommitIndex < a.Index || got.Term != lead.Status().Term {
			t.Errorf("confirmation %+v of state %+v", got, a)
		}

		c.net.isolate(lead.opts.NodeID)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		if _, err := lead.Confirm(ctx); !isCode(err, kv.CodeNoLeader) {
			t.Errorf("isolated: %v", err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("the isolated leader gave up after %v", took)
		}
	})
}

// Who waits for a new leader to be ready hears at once that it is none any more.
func TestConfirmWhileLeadershipEnds(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		lead.leads.Store(nil) // as before the first entry of the term has been applied
		start := time.Now()
		c.net.isolate(lead.opts.NodeID)
		if _, err := lead.Confirm(t.Context()); !isCode(err, kv.CodeNoLeader) {
			t.Error(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("after %v", took)
		}
	})
}

// Those who arrive together share a round, and nobody gets one that began before he came.
func TestConfirmShares(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		ids := []string{"a", "b", "c"}
		var release []func()
		for _, id := range ids {
			if id != lead.opts.NodeID {
				release = append(release, c.net.hold(id, lead.opts.NodeID, lead.opts.NodeID))
			}
		}
		const calls = 500
		moments := make(map[time.Duration]int)
		var mu sync.Mutex // guards moments
		var wg sync.WaitGroup
		for range calls {
			time.Sleep(100 * time.Microsecond)
			wg.Go(func() {
				came := lead.mono()
				got, err := lead.Confirm(t.Context())
				if err != nil || got.At < came {
					t.Errorf("came at %v, confirmed at %v: %v", came, got.At, err)
				}
				mu.Lock()
				defer mu.Unlock()
				moments[got.At]++
			})
		}
		synctest.Wait()
		for _, r := range release {
			r()
		}
		wg.Wait()
		if len(moments) > maxRounds+1 {
			t.Errorf("%d calls took %d rounds", calls, len(moments))
		}
	})
}

// The leader is deposed while the answers to its last heartbeats are still under way. They say success, in its term, and
// they arrive after a client has asked for a confirmation, but they answer requests that were sent before: counting them
// would let it serve a stale read.
func TestConfirmIgnoresAnswersToEarlierRequests(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.adapt = func(id string, o *Options) {
			set, err := ProfileTest.settings()
			if err != nil {
				t.Error(err)
			}
			set.duty = time.Hour
			if id == "a" { // a slow clock: it would not step down by itself
				set.heartbeat, set.election, set.lease = 9*time.Second, 9*time.Second, 8*time.Second
			}
			set.rpc = time.Minute
			o.settings = &set
		}
		old := c.start().nodes["a"]
		for c.leader() != old { // a never stands for election as early as the others
			if err := c.leader().raft.LeadershipTransferToServer("a", "a").Error(); err != nil {
				t.Log(err)
			}
		}
		c.mustPut(old, "k", "1")

		releaseB, releaseC := c.net.hold("b", "a", "a"), c.net.hold("c", "a", "a")
		defer c.net.hold("b", "a", "b")() // nor does a hear of the new term otherwise
		defer c.net.hold("c", "a", "c")()
		time.Sleep(2 * time.Second) // requests have been answered, their answers are held, b and c have elected one of them
		lead := c.leader("a")
		c.mustPut(lead, "k", "2")
		if _, self := old.Leader(); !self {
			t.Fatal("the old leader has noticed; the test shows nothing")
		}

		confirmed := make(chan error, 1)
		go func() {
			_, err := old.Confirm(t.Context())
			confirmed <- err
		}()
		synctest.Wait()
		releaseB()
		releaseC()
		if err := <-confirmed; err == nil {
			t.Errorf("a deposed leader confirmed itself and would serve %q", c.get(old, "k"))
		}
	})
}

func TestQuorumCountsVotersOnly(t *testing.T) {
	a := newAcks()
	a.success(7, "b", ack{ticket: 10})
	a.success(7, "learner", ack{ticket: 30})
	a.success(7, "c", ack{ticket: 20})
	a.success(6, "c", ack{ticket: 90}) // a late answer of an earlier term
	for _, test := range []struct {
		term   uint64
		self   raft.ServerID
		voters []raft.ServerID
		want   uint64
	}{
		{7, "a", []raft.ServerID{"a"}, ^uint64(0)},
		{7, "a", []raft.ServerID{"a", "b"}, 10},
		{7, "a", []raft.ServerID{"a", "b", "c"}, 20},
		{7, "a", []raft.ServerID{"a", "b", "c", "d"}, 10},
		{7, "a", []raft.ServerID{"a", "b", "c", "d", "e"}, 10},
		{7, "a", []raft.ServerID{"a", "d", "e"}, 0},
		{7, "a", []raft.ServerID{"b", "c", "d"}, 10}, // not a voter itself
		{8, "a", []raft.ServerID{"a", "b", "c"}, 0},
		{7, "a", nil, 0},
	} {
		if got := a.quorum(test.term, test.voters, test.self); got != test.want {
			t.Errorf("%+v: %d", test, got)
		}
	}
}

// The entry is committed, and applying it takes a while: who asks now must see it, however long that takes.
func TestConfirmWaitsForTheState(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		var slow atomic.Bool
		release := make(chan struct{})
		c.adapt = func(_ string, o *Options) {
			o.Observe = func(state.Committed) {
				if slow.Load() {
					<-release
				}
			}
		}
		lead := c.start().leader()
		committed, applied := lead.raft.CommitIndex(), lead.State().Applied()
		slow.Store(true)
		var wrote sync.WaitGroup
		wrote.Go(func() { c.mustPut(lead, "k", "v") })
		for lead.raft.CommitIndex() == committed {
			time.Sleep(time.Millisecond)
		}
		confirmed := make(chan Confirmation, 1)
		wrote.Go(func() {
			got, err := lead.Confirm(t.Context())
			if err != nil {
				t.Error(err)
			}
			confirmed <- got
		})
		time.Sleep(time.Second)
		if len(confirmed) > 0 {
			t.Error("confirmed before the state had applied what was committed")
		}
		close(release)
		if got := <-confirmed; got.Revision <= applied.Revision {
			t.Errorf("confirmed at revision %d, the write comes after %d", got.Revision, applied.Revision)
		}
		wrote.Wait()
	})
}
