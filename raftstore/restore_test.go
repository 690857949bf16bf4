package raftstore

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// restoring is a restore of one namespace with a key for each chunk, sent to whoever leads.
type restoring struct {
	c     *cluster
	id    command.RestoreID
	ns    kv.NamespaceID
	size  uint64
	count uint64
}

func (c *cluster) restore() *restoring {
	return &restoring{c: c, id: command.NewRestoreID(), ns: kv.NewNamespaceID()}
}

// insist sends an operation until it is answered: each of a restore may come twice.
func (r *restoring) insist(op command.Op) command.Result {
	r.c.t.Helper()
	ctx, cancel := context.WithTimeout(r.c.t.Context(), 30*time.Second)
	defer cancel()
	for {
		res, err := r.c.leader().Propose(ctx, []command.Op{op})
		if err == nil {
			return res
		}
		if ctx.Err() != nil {
			r.c.t.Fatalf("kind %d: %v", op.Kind, err)
		}
	}
}

func (r *restoring) must(op command.Op) command.Result {
	r.c.t.Helper()
	res := r.insist(op)
	if res.Ops[0].Code != "" {
		r.c.t.Fatalf("kind %d: %s", op.Kind, res.Ops[0].Code)
	}
	return res
}

func (r *restoring) begin() {
	r.c.t.Helper()
	r.must(command.Op{Kind: command.KindRestoreBegin, Restore: &command.Restore{ID: r.id, Replace: true}})
}

func (r *restoring) chunks(n int) {
	r.c.t.Helper()
	for range n {
		r.count++
		put := r.c.put(key(int(r.count)), "restored")
		put.Namespace, put.Revision = r.ns, kv.Revision(r.count)
		var records []byte
		if r.count == 1 {
			records = command.AppendStaged(nil, &command.Op{Kind: command.KindCreateNamespace, Namespace: r.ns, Title: "restored"})
		}
		records = command.AppendStaged(records, &put)
		r.size += uint64(len(put.Key) + len(put.Value))
		r.must(command.Op{Kind: command.KindRestoreChunk, Restore: &command.Restore{ID: r.id, Seq: r.count, Records: records}})
	}
}

func (r *restoring) end() command.Op {
	return command.Op{
		Kind: command.KindRestoreEnd, Epoch: kv.NewEpoch(time.Now().UnixMilli(), r.c.leader().State().Applied().Epoch),
		Restore: &command.Restore{ID: r.id, Chunks: r.count, Keys: r.count, Bytes: r.size},
	}
}

func titles(s *Store) string {
	var all string
	for _, ns := range s.State().Control().Namespaces {
		all += ns.Title + " "
	}
	return all
}

// TestRestoreAcrossLeaders: a leader that dies in the middle of a restore takes nothing with it and changes nothing; the
// restore goes on under the next one.
func TestRestoreAcrossLeaders(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		c.mustPut(c.leader(), "old", "content")
		r := c.restore()
		r.begin()
		for range 2 {
			r.chunks(7)
			lead := c.leader()
			c.net.isolate(lead.opts.NodeID)
			next := c.leader(lead.opts.NodeID)
			if got := c.get(next, "old"); got != "content" || titles(next) != "default " {
				t.Errorf("half restored: %q in %s", got, titles(next))
			}
			r.chunks(7)
			c.net.join(lead.opts.NodeID)
		}
		res := r.must(r.end())
		c.converge(res.Revision)
		for id, s := range c.nodes {
			stats, err := s.State().NamespaceStats(r.ns)
			item, at, _ := s.State().Get(r.ns, key(28), false)
			if titles(s) != "restored " || err != nil || stats.Keys != 28 || string(item.Value) != "restored" || at.Epoch != res.Epoch {
				t.Errorf("%s has %s with %+v, key 28 %q (%v)", id, titles(s), stats, item.Value, err)
			}
		}
		c.dropped()
	})
}

// dropped waits until every node has removed what a restore has left.
func (c *cluster) dropped() {
	c.t.Helper()
	for id, s := range c.nodes {
		for start := time.Now(); s.State().Restore().Phase != state.RestoreNone; time.Sleep(time.Second) {
			if time.Since(start) > 10*time.Minute {
				c.t.Fatalf("%s still has %+v", id, s.State().Restore())
			}
		}
	}
}

// TestRestoreThatDies: what a restore has staged goes when nothing is heard of it any more, and it cannot come back then.
func TestRestoreThatDies(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		c.mustPut(c.leader(), "old", "content")
		r := c.restore()
		r.begin()
		r.chunks(5)
		began := time.Now()
		other := c.restore()
		if res := other.insist(command.Op{Kind: command.KindRestoreBegin, Restore: &command.Restore{ID: other.id}}); res.Ops[0].Code != kv.CodeUnavailable {
			t.Errorf("a second restore beside it: %+v", res.Ops)
		}
		c.dropped()
		if took := time.Since(began); took < state.RestoreIdle*time.Millisecond || took > 2*state.RestoreIdle*time.Millisecond {
			t.Errorf("dropped after %v", took)
		}
		if res := r.insist(r.end()); res.Ops[0].Code != kv.CodeNotFound {
			t.Errorf("its end: %+v", res.Ops)
		}
		if lead := c.leader(); c.get(lead, "old") != "content" || titles(lead) != "default " {
			t.Error("the content changed")
		}
	})
}

// TestRestoreEndComesFirst: among writes of all kinds the end of a restore comes first in its entry, and every write of a
// client is told with the epoch in which it happened.
func TestRestoreEndComesFirst(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		old := lead.State().Applied().Epoch
		r := c.restore()
		r.begin()
		r.chunks(3)
		end := r.end()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				put := c.put(fmt.Sprint("k", i), "v")
				if i%2 == 1 {
					put.Namespace = r.ns
				}
				res, err := lead.Propose(t.Context(), []command.Op{put})
				if err != nil {
					t.Error(err)
					return
				}
				before, there := res.Epoch == old, res.Ops[0].Code == ""
				if there != (before != (i%2 == 1)) {
					t.Errorf("write %d in epoch %s: %+v", i, res.Epoch, res.Ops[0])
				}
			})
			if i == 32 {
				wg.Go(func() {
					if res, err := lead.Propose(t.Context(), []command.Op{end}); err != nil || res.Ops[0].Code != "" {
						t.Errorf("the end: %+v, %v", res, err)
					}
				})
			}
		}
		wg.Wait()
	})
}
