package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

func TestReplicates(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		res := c.mustPut(lead, "k", "v")
		c.converge(res.Revision)
		for id, s := range c.nodes {
			if got := c.get(s, "k"); got != "v" {
				t.Errorf("%s has %q", id, got)
			}
			if st := s.Status(); len(st.Voters) != 3 || st.Leader != lead.opts.NodeID {
				t.Errorf("%s: status %+v", id, st)
			}
			if ok, err := s.Bootstrapped(); !ok || err != nil {
				t.Errorf("%s: bootstrapped %v %v", id, ok, err)
			}
			if s == lead {
				continue
			}
			_, err := s.Propose(t.Context(), []command.Op{c.put("k", "w")})
			if e := new(kv.Error); !isCode(err, kv.CodeNotLeader) || !errors.As(err, &e) || e.Leader != lead.opts.NodeID {
				t.Errorf("%s took a write: %v", id, err)
			}
			if _, err := s.Confirm(t.Context()); !isCode(err, kv.CodeNotLeader) {
				t.Errorf("%s confirmed its leadership: %v", id, err)
			}
		}
		if err := lead.Bootstrap([]string{lead.opts.NodeID}); err == nil {
			t.Error("bootstrapped twice")
		}
	})
}

// What is acknowledged is there, on every voter, whatever its index in the log is.
func TestEveryWriteIsKept(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		const writes = 250
		var last kv.Revision
		for i := range writes {
			last = c.mustPut(lead, fmt.Sprint("k", i), fmt.Sprint("v", i)).Revision
		}
		c.converge(last)
		for id, s := range c.nodes {
			for i := range writes {
				if got := c.get(s, fmt.Sprint("k", i)); got != fmt.Sprint("v", i) {
					t.Errorf("%s has %q for write %d", id, got, i)
				}
			}
		}
	})
}

func TestFailover(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		old := c.leader()
		c.mustPut(old, "k", "1")
		changed := old.LeaderChanged()

		c.net.isolate(old.opts.NodeID)
		lost := time.Now()
		lead := c.leader(old.opts.NodeID)
		c.mustPut(lead, "k", "2")
		if gap := time.Since(lost); gap > 2*time.Second {
			t.Errorf("no writes for %v", gap)
		}
		<-changed
		if id, self := old.Leader(); id != "" || self {
			t.Errorf("the isolated leader names %q", id)
		}
		if _, err := old.Propose(t.Context(), []command.Op{c.put("k", "lost")}); !isCode(err, kv.CodeNoLeader) {
			t.Errorf("the isolated leader took a write: %v", err)
		}

		c.net.join(old.opts.NodeID)
		c.converge(c.mustPut(c.leader(), "k", "3").Revision)
		if got := c.get(old, "k"); got != "3" {
			t.Errorf("the old leader has %q", got)
		}
	})
}

func TestTransferLeadership(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		old := c.leader()
		if err := old.TransferLeadership(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		if _, self := old.Leader(); self {
			t.Error("still leads")
		}
		c.mustPut(c.leader(), "k", "v")
	})
}

// Every outcome that a client is told while leaders come and go is true: what was acknowledged is there, and what was
// refused is not.
func TestOutcomesAreTruthful(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		c.leader()
		const writers, rounds = 8, 8
		outcomes := make(map[string]error)
		var mu sync.Mutex // guards outcomes
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		ids := []string{"a", "b", "c"}
		for w := range writers {
			rng := rand.New(rand.NewPCG(7, uint64(w)))
			wg.Go(func() {
				for i := w; ctx.Err() == nil; i += writers {
					try, cancel := context.WithTimeout(ctx, time.Duration(1+rng.IntN(300))*time.Millisecond)
					_, err := c.nodes[ids[rng.IntN(3)]].Propose(try, []command.Op{c.put(key(i), "v")})
					cancel()
					mu.Lock()
					outcomes[key(i)] = err
					mu.Unlock()
					time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
				}
			})
		}
		for range rounds {
			time.Sleep(500 * time.Millisecond)
			lead := c.leader().opts.NodeID
			c.net.isolate(lead)
			time.Sleep(700 * time.Millisecond)
			c.net.join(lead)
		}
		stop()
		wg.Wait()
		lead := c.leader()
		c.converge(c.mustPut(lead, "end", "").Revision)

		count := make(map[kv.Code]int)
		for k, err := range outcomes {
			code := kv.CodeOf(err)
			count[code]++
			item, _, gerr := lead.State().Get(c.ns, k, true)
			if gerr != nil {
				t.Fatal(gerr)
			}
			switch code {
			case "":
				if item.Absent {
					t.Errorf("%s was acknowledged and is lost", k)
				}
			case kv.CodeNotLeader, kv.CodeNoLeader, kv.CodeDeadlineExceeded, kv.CodeOverloaded:
				if !item.Absent {
					t.Errorf("%s was refused (%v) and is there", k, err)
				}
			case kv.CodeOutcomeUnknown:
			default:
				t.Errorf("%s: unexpected outcome %v", k, err)
			}
		}
		t.Log(count)
		if count[""] < 500 || count[kv.CodeOutcomeUnknown] == 0 || count[kv.CodeNoLeader]+count[kv.CodeNotLeader] == 0 {
			t.Errorf("the test has not met every outcome: %v", count)
		}
	})
}

// A restarted voter goes on where it was: nothing is restored, nothing is applied twice, nobody is asked.
func TestRestart(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		var last kv.Revision
		for i := range 20 {
			last = c.mustPut(lead, key(i), "v").Revision
		}
		c.converge(last)
		before := make(map[string]kv.Revision)
		for id, s := range c.nodes {
			before[id] = s.State().Applied().Revision
		}
		for id := range before {
			c.stop(id)
		}
		seen := make(map[string]*observed)
		c.adapt = func(id string, o *Options) {
			seen[id] = new(observed)
			o.Observe = seen[id].see
		}
		for id, rev := range before {
			if got := c.open(id).State().Applied().Revision; got != rev {
				t.Errorf("%s restarted at revision %d, it was at %d", id, got, rev)
			}
		}
		res := c.mustPut(c.leader(), "k", "v")
		if res.Revision != last+1 {
			t.Errorf("revision %d after %d", res.Revision, last)
		}
		c.converge(res.Revision)
		for id, o := range seen {
			if recs := o.records(); len(recs) != 1 || recs[0].Prev != last || recs[0].To != res.Revision {
				t.Errorf("%s applied after the restart: %+v", id, recs)
			}
		}
	})
}

// A single voter is a mesh; what a leader does on its own account: the first command, expired keys, a long change index.
func TestDuties(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		c.adapt = func(_ string, o *Options) {
			set, err := ProfileTest.settings()
			if err != nil {
				t.Fatal(err)
			}
			set.changes = 100
			o.settings = &set
		}
		s := c.start().leader()
		if len(s.State().Control().Namespaces) != 1 {
			t.Errorf("control state %+v", s.State().Control())
		}
		op := c.put("short-lived", "v")
		op.Expiry = time.Now().Unix() + 2
		if _, err := s.Propose(t.Context(), []command.Op{op, c.put("kept", "v")}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		stats, err := s.State().NamespaceStats(c.ns)
		if err != nil || stats.Keys != 1 {
			t.Errorf("after the expiry: %+v %v", stats, err)
		}

		for i := range 300 {
			c.mustPut(s, key(i%10), "v")
		}
		time.Sleep(time.Second)
		last := s.State().Applied().Revision
		oldest, err := oldestChange(s.State(), last)
		if err != nil || last-oldest > 100 || last-oldest < 50 {
			t.Errorf("the change index spans (%d, %d]: %v", oldest, last, err)
		}
	})
}

func TestUndecodableEntryStopsTheNode(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		fatal := make(chan error, 10)
		c.adapt = func(_ string, o *Options) { o.Fatal = func(err error) { fatal <- err } }
		s := c.start().leader()
		before := s.State().Applied().Revision
		if err := s.raft.Apply([]byte{99, 1, 2}, 0).Error(); err != nil {
			t.Fatal(err)
		}
		if err := <-fatal; err == nil {
			t.Error("no error")
		}
		if _, err := s.Propose(t.Context(), []command.Op{c.put("k", "v")}); !isCode(err, kv.CodeOutcomeUnknown) {
			t.Errorf("a write after the hole: %v", err)
		}
		if err := s.raft.Snapshot().Error(); err == nil {
			t.Error("a snapshot that claims the hole")
		}
		if got := s.State().Applied().Revision; got != before {
			t.Errorf("applied on top of a hole: revision %d, was %d", got, before)
		}
	})
}

// A crash between the two steps of a bootstrap leaves a term and no entry. The voter can be bootstrapped again then; one
// that has voted cannot, because its vote may have made a leader.
func TestCutBootstrap(t *testing.T) {
	for name, voted := range map[string]uint64{"not voted": 0, "voted": 1} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				c := newCluster(t, "a")
				log, err := c.logs(c.dirs["a"])
				if err == nil {
					err = errors.Join(log.SetUint64(termKey, 1), log.SetUint64(voteTermKey, voted))
				}
				if err != nil {
					t.Fatal(err)
				}
				begun, err := c.open("a").Bootstrapped()
				if err != nil || begun != (voted > 0) {
					t.Fatalf("bootstrapped: %v, %v", begun, err)
				}
				if !begun {
					if err := c.nodes["a"].Bootstrap([]string{"a"}); err != nil {
						t.Fatal(err)
					}
					c.mustPut(c.leader(), "k", "v")
				}
			})
		})
	}
}
