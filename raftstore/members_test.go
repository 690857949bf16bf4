package raftstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// A node joins without a vote and is promoted once it has caught up; one that is not there never gets a vote.
func TestJoin(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b").start()
		lead := c.leader()
		c.mustPut(lead, "k", "v")
		c.dirs["c"] = t.TempDir()
		if err := lead.Promote(t.Context(), "c"); !isCode(err, kv.CodeRefused) {
			t.Errorf("promoted a node that is no member: %v", err)
		}
		for range 2 { // it may be repeated
			if err := lead.AddMember(t.Context(), "c"); err != nil {
				t.Fatal(err)
			}
		}
		short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := lead.Promote(short, "c"); !isCode(err, kv.CodeNoQuorum) {
			t.Errorf("promoted a node that is not there: %v", err)
		}
		if m := lead.Membership(); len(m.Voters) != 2 || !slices.Equal(m.Learners, []string{"c"}) || m.Index == 0 {
			t.Errorf("a node that is not there has a vote: %+v", m)
		}
		if p, ok := lead.Progress("c"); !ok || p.Well != 0 || p.Stable {
			t.Errorf("a node that is not there is well: %+v", p)
		}
		c.open("c")
		for {
			p, ok := lead.Progress("c")
			if !ok {
				t.Fatal("the leader has changed")
			}
			if p.Stable {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := lead.Promote(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		c.converge(c.mustPut(lead, "k", "w").Revision)
		if m := c.nodes["c"].Membership(); len(m.Voters) != 3 || !m.Has("c") {
			t.Errorf("the new voter's membership: %+v", m)
		}
	})
}

// Who stops answering is no longer well at once, and dead after a while; who comes back is well again, and stable later.
func TestProgress(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		gone := c.follower().opts.NodeID
		look := func() Progress {
			t.Helper()
			p, ok := lead.Progress(gone)
			if !ok {
				t.Fatal("the leader has changed")
			}
			return p
		}
		time.Sleep(time.Second)
		if p := look(); !p.Stable || p.Dead || p.Behind != 0 {
			t.Errorf("a follower: %+v", p)
		}
		c.net.isolate(gone)
		time.Sleep(lead.set.dead - 500*time.Millisecond)
		if p := look(); p.Stable || p.Well != 0 || p.Dead {
			t.Errorf("cut off for a while: %+v", p)
		}
		time.Sleep(time.Second)
		if p := look(); p.Stable || !p.Dead {
			t.Errorf("cut off for long: %+v", p)
		}
		c.net.join(gone)
		for look().Well == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		if p := look(); p.Stable || p.Dead {
			t.Errorf("just back: %+v", p)
		}
		time.Sleep(lead.set.stable + lead.set.heartbeat)
		if p := look(); !p.Stable {
			t.Errorf("back for a while: %+v", p)
		}
		if p, ok := lead.Progress(lead.opts.NodeID); !ok || !p.Stable || p.Dead {
			t.Errorf("the leader itself: %+v", p)
		}
		if _, ok := c.nodes[gone].Progress(lead.opts.NodeID); ok {
			t.Error("a follower claims to know")
		}
	})
}

// A removal is refused when those who would remain are no quorum that answers, and names those who do not.
func TestRemoval(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		c.mustPut(lead, "k", "v")
		gone := c.follower().opts.NodeID
		c.stop(gone) // it has answered a moment ago
		if err := lead.RemoveMember(t.Context(), lead.opts.NodeID); !errors.Is(err, ErrLeaderStays) && !isCode(err, kv.CodeRefused) {
			t.Errorf("the leader removed itself: %v", err)
		}
		for id := range c.nodes {
			if id == lead.opts.NodeID {
				continue
			}
			err := lead.RemoveMember(t.Context(), id)
			var loss *QuorumLossError
			if !isCode(err, kv.CodeRefused) || !errors.As(err, &loss) || !slices.Equal(loss.Down, []string{gone}) || len(loss.Remain) != 2 {
				t.Errorf("removed %s, which the quorum needs: %v", id, err)
			}
		}
		if err := lead.RemoveMember(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		c.mustPut(lead, "k", "x")
		if st := lead.Status(); len(st.Voters) != 2 {
			t.Errorf("voters %v", st.Voters)
		}

		// The removed one starts again with the membership that it knew. It must not disturb the others.
		term := lead.Status().Term
		old := c.open(gone)
		time.Sleep(5 * time.Second)
		if now := lead.Status(); now.Raft != "leader" || now.Term != term {
			t.Errorf("a removed voter has disturbed the mesh: %+v, term %d before", now, term)
		}
		if m := old.Membership(); !m.Has(gone) {
			t.Errorf("it was told: %+v", m)
		}
		// Taken back, it goes on where it was.
		if err := lead.AddMember(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		if err := lead.Promote(t.Context(), gone); err != nil {
			t.Fatal(err)
		}
		c.converge(c.mustPut(lead, "k", "y").Revision)
	})
}

func TestRemovalOfTheOnlyVoter(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a").start()
		if err := c.leader().RemoveMember(t.Context(), "a"); !isCode(err, kv.CodeRefused) {
			t.Errorf("the only voter was removed: %v", err)
		}
	})
}

// Handing the leadership over costs no write its outcome: what is on its way comes first, and what comes meanwhile is refused
// with the remedy, also when it has waited in the queue.
func TestHandingOverWaitsForWrites(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c", "d", "e").start()
		lead, to := c.leader(), c.follower()
		var release []func()
		for _, id := range []string{"a", "b", "c", "d", "e"} { // no majority has the write, but the next leader
			if id != lead.opts.NodeID && id != to.opts.NodeID {
				release = append(release, c.net.hold(id, lead.opts.NodeID, lead.opts.NodeID))
			}
		}
		propose := func(name string) <-chan error {
			done := make(chan error, 1)
			go func() {
				_, err := lead.Propose(t.Context(), []command.Op{c.put(name, "v")})
				done <- err
			}()
			synctest.Wait()
			return done
		}
		flying := propose("flying")
		queued := propose("queued") // the pace keeps it
		handed := make(chan error, 1)
		go func() { handed <- lead.TransferLeadership(t.Context(), to.opts.NodeID) }()
		synctest.Wait()
		if err := <-queued; !isCode(err, kv.CodeNoLeader) {
			t.Errorf("in the queue: %v", err)
		}
		if err := <-propose("late"); !isCode(err, kv.CodeNoLeader) {
			t.Errorf("meanwhile: %v", err)
		}
		for _, r := range release {
			r()
		}
		if err := <-flying; err != nil {
			t.Errorf("on its way: %v", err)
		}
		if err := <-handed; err != nil {
			t.Error(err)
		}
		if now := c.leader(); now != to {
			t.Errorf("%s leads, not %s", now.opts.NodeID, to.opts.NodeID)
		}
		c.mustPut(c.leader(), "k", "v")
	})
}

// Leadership can be given to a voter by name, and to nobody else.
func TestTransferTo(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead, to := c.leader(), c.follower()
		if err := lead.TransferLeadership(t.Context(), "nobody"); !isCode(err, kv.CodeRefused) {
			t.Errorf("to a stranger: %v", err)
		}
		if err := to.TransferLeadership(t.Context(), to.opts.NodeID); !isCode(err, kv.CodeNotLeader) {
			t.Errorf("by a follower: %v", err)
		}
		if err := lead.TransferLeadership(t.Context(), to.opts.NodeID); err != nil {
			t.Fatal(err)
		}
		if now := c.leader(); now != to {
			t.Errorf("%s leads, not %s", now.opts.NodeID, to.opts.NodeID)
		}
	})
}
