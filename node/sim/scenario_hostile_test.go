package sim

import (
	"context"
	"encoding/binary"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// TestHostileHints lets somebody who has the gossip key, and no certificate, say what he likes about what changed. Nothing
// wrong is served, the keys that he talks about are hits again soon, and nobody's memory grows.
func TestHostileHints(t *testing.T) {
	play(t, shape{edges: []int{1, 1}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		voter := s.named("a-voter")
		const keys = 20
		var last api.WriteResult
		for i := range keys {
			last = s.write(voter, nth("key", i), nth("old", i))
		}
		hits := func(what string) {
			t.Helper()
			for _, m := range s.machines {
				for i := range keys {
					var v *api.Value
					s.within(5*time.Second, what+": "+nth("key", i)+" is a hit at "+m.name, func() bool {
						v, _ = s.read(m, nth("key", i), api.Consistency{})
						return v.Tier == api.TierHit && v.Staleness < 2*time.Second
					})
				}
			}
		}
		sum := func(metric string, labels ...string) (n float64) {
			for _, m := range s.machines {
				n += m.metric(metric, labels...)
			}
			return n
		}
		hits("before")

		evil := attacker(t, s)
		refused, disproved := sum("kvmesh_hints_total", "what=refused"), sum("kvmesh_hints_disproved_total")
		hash := feed.NewHasher(last.Epoch).Key(s.ns.ID, nth("key", 0))
		tell := func(rec kv.Record) {
			evil.Hint(feed.Append(nil, rec))
			time.Sleep(2 * time.Second)
		}
		// Of an epoch that is not, and of more than gossip may speak of.
		other := kv.NewEpoch(time.Now().Add(time.Hour).UnixMilli(), last.Epoch)
		tell(kv.Record{Epoch: other, Prev: 1, To: 1 << 40, Kind: kv.RecordKeys, Hashes: []uint64{hash}})
		tell(kv.Record{Epoch: last.Epoch, Prev: 1, To: 1 << 40, Kind: kv.RecordAll})
		if got := sum("kvmesh_hints_total", "what=refused") - refused; got < float64(2*len(s.machines)) {
			t.Errorf("%v refusals of two hints at %d nodes", got, len(s.machines))
		}
		hits("after hints of another epoch")
		// A revision far ahead, for a hot key and for its namespace.
		tell(kv.Record{Epoch: last.Epoch, Prev: 1<<40 - 1, To: 1 << 40, Kind: kv.RecordKeys, Hashes: []uint64{hash}})
		hits("after a key's revision far ahead")
		tell(kv.Record{Epoch: last.Epoch, Prev: 1<<41 - 1, To: 1 << 41, Kind: kv.RecordNamespace, Namespace: s.ns.ID})
		hits("after a namespace's revision far ahead")
		if got := sum("kvmesh_hints_disproved_total") - disproved; got < 2 {
			t.Errorf("%v hints disproved", got)
		}
		// A watermark far ahead: nobody has it, and W stays true.
		tell(kv.Record{Epoch: last.Epoch, Prev: 1<<42 - 1, To: 1 << 42, Kind: kv.RecordKeys})
		hits("after a watermark far ahead")
		last = s.write(voter, nth("key", 1), "after the watermark")
		for _, m := range s.machines {
			s.within(5*time.Second, "W goes on at "+m.name, func() bool { return caughtUp(m, last.Revision) })
			s.within(5*time.Second, "the lag of "+m.name+" is what the mesh says", func() bool { return m.metric("kvmesh_feed_lag_revisions") < 100 })
			if w := m.metric("kvmesh_watermark_revision"); w > float64(last.Revision) {
				t.Errorf("W is %v at %s, the mesh is at %d", w, m.name, last.Revision)
			}
		}

		// A flood of different ones, all of them about keys and revisions to come.
		heap, entries := heapInUse(), sum("kvmesh_cache_entries")
		const flood = 100_000 / dear
		heard := sum("kvmesh_hints_total")
		for i := range flood {
			h := binary.BigEndian.Uint64([]byte(nth("h", i) + "........")[:8]) * 0x9e3779b97f4a7c15 * uint64(i+1)
			rec := kv.Record{Epoch: last.Epoch, Prev: last.Revision + kv.Revision(i), To: last.Revision + kv.Revision(i) + 1, Kind: kv.RecordKeys, Hashes: []uint64{h}}
			if i%50 == 0 {
				rec.Kind, rec.Hashes, rec.Namespace = kv.RecordNamespace, nil, kv.NewNamespaceID()
			}
			evil.Hint(feed.Append(nil, rec))
			if i%500 == 499 {
				time.Sleep(20 * time.Millisecond)
			}
		}
		time.Sleep(5 * time.Second)
		heard = sum("kvmesh_hints_total") - heard
		grown := float64(heapInUse()) - float64(heap)
		t.Logf("%d hints sent, %v heard by %d nodes; the heap grew by %.1f MiB", flood, heard, len(s.machines), grown/(1<<20))
		if heard < flood*2 {
			t.Errorf("only %v hints of the flood were heard: it proves nothing", heard)
		}
		s.unchanged("cache entries", entries, sum("kvmesh_cache_entries"))
		// Identities already seen are remembered, a bounded number of them: some 5 MiB at the four hosts. All of them would be 25.
		if grown > 16<<20 {
			t.Errorf("the heap grew by %.1f MiB", grown/(1<<20))
		}
		if _, value := s.read(s.edges()[0], nth("key", 1), api.Consistency{}); value != "after the watermark" {
			t.Errorf("after the flood: %q", value)
		}
		hits("after the flood")
		for i := range keys {
			s.write(voter, nth("key", i), nth("new", i))
		}
		time.Sleep(2 * time.Second)
		for _, m := range s.machines {
			for i := range keys {
				if _, value := s.read(m, nth("key", i), api.Consistency{}); value != nth("new", i) {
					t.Errorf("%s at %s: %q", nth("key", i), m.name, value)
				}
			}
		}
	})
}

// attacker joins the gossip, and has no certificate.
// TestPullsPaceThemselves tells a node whose feed is cut, again and again, of what nobody has: it asks the others no more than
// a few times a second, and goes on at once when there is something to be had.
func TestPullsPaceThemselves(t *testing.T) {
	t.Parallel()
	var gate *feedGate
	before := func(w *world) { gate = gateFeeds(w.named("b-edge-1")) }
	play(t, shape{edges: []int{1, 1}, voters: 1, tune: bigCaches}, before, func(t *testing.T, s *scene) {
		edge, voter := s.named("b-edge-1"), s.named("a-voter")
		last := s.write(voter, "key", "old")
		s.within(5*time.Second, "the edge has the write", func() bool { return caughtUp(edge, last.Revision) })
		evil := attacker(t, s)
		gate.set(true)
		time.Sleep(2 * time.Second)
		asked := func() (n float64) {
			for _, m := range s.machines {
				n += m.metric("kvmesh_rpc_requests_total", "method=pull")
			}
			return n
		}
		const during = 30 * time.Second
		earlier := asked()
		begun := time.Now()
		for ahead := last.Revision + 1<<40; time.Since(begun) < during; ahead++ {
			evil.Hint(feed.Append(nil, kv.Record{Epoch: last.Epoch, Prev: ahead - 1, To: ahead, Kind: kv.RecordKeys}))
			time.Sleep(50 * time.Millisecond)
		}
		n := asked() - earlier
		t.Logf("%v questions in %v", n, during)
		// Two rounds a second, of all the others.
		if limit := 2 * during.Seconds() * float64(len(s.machines)-1); n < 10 || n > limit+10 {
			t.Errorf("%v questions in %v, want 10 to %v", n, during, limit+10)
		}
		last = s.write(voter, "key", "new")
		s.within(3*time.Second, "what there is is pulled", func() bool { return edge.metric("kvmesh_watermark_revision") >= float64(last.Revision) })
	})
}

func attacker(t *testing.T, s *scene) *gossip.Gossip {
	t.Helper()
	g, err := gossip.New(gossip.Options{
		ID: "00000000-0000-4000-8000-000000000666", Name: "evil", Role: certs.RoleEdge, Region: "z", Version: "1",
		HTTP: "10.0.6.6:80", Peer: "10.0.6.6:81", Bind: "10.0.6.6:82",
		Key: s.key.GossipKey(), Label: s.key.GossipLabel(), Seeds: []string{s.machines[0].opts.Gossip},
		Profile: gossip.WAN, Network: s.net.Host("10.0.6.6"), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(s.ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_ = g.Stop(ctx)
	})
	s.within(30*time.Second, "the attacker is in", func() bool { return len(g.Members()) > len(s.machines) })
	return g
}

func heapInUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
