package sim

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// TestFeedResumesExactly cuts an edge off for ten minutes while some keys change. Once it is back it knows exactly which:
// all others are hits, without a single question to anybody.
func TestFeedResumesExactly(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge, voter := s.named("a-edge-1"), s.named("a-voter")
		const keys, changed = 100, 20
		for i := range keys {
			s.write(voter, nth("key", i), nth("old", i))
			s.read(edge, nth("key", i), api.Consistency{})
		}
		s.isolate(edge, true)
		var last api.WriteResult
		for i := range 300 {
			time.Sleep(2 * time.Second)
			k := i % changed
			last = s.write(voter, nth("key", k), fmt.Sprintf("new-%03d-%d", k, i))
		}
		if edge.metric("kvmesh_watermark_revision") >= float64(last.Revision)-200 {
			t.Fatal("the edge was not cut off")
		}
		s.isolate(edge, false)
		took := s.within(30*time.Second, "the edge catches up", func() bool { return caughtUp(edge, last.Revision) })
		t.Logf("caught up %v after the link was back", took)
		if voter.metric("kvmesh_feed_ladder_total", "rung=all")+voter.metric("kvmesh_feed_ladder_total", "rung=namespaces") > 0 {
			t.Error("the feed resumed by a floor; it could have told exactly what had changed")
		}
		time.Sleep(time.Second) // refills of what was hot
		before := fills(edge)
		for i := changed; i < keys; i++ {
			if v, value := s.read(edge, nth("key", i), api.Consistency{}); v.Tier != api.TierHit || value != nth("old", i) {
				t.Errorf("key %d did not change: %q by %s; want a hit", i, value, v.Tier)
			}
		}
		s.unchanged("fills for keys that did not change", before, fills(edge))
		for i := range changed {
			if _, value := s.read(edge, nth("key", i), api.Consistency{}); value != fmt.Sprintf("new-%03d-%d", i, 280+i) {
				t.Errorf("key %d: %q after the edge was away", i, value)
			}
		}
	})
}

// TestFeedResumesByFloors is the same with a ring and a change index that no longer reach back: the namespace in which
// something changed is revalidated, the other one stays as it was.
func TestFeedResumesByFloors(t *testing.T) {
	t.Parallel()
	tune := func(o *node.Options) { bigCaches(o); o.RingBytes, o.ChangeIndex = 1<<10, 40 }
	play(t, shape{edges: []int{1}, voters: 1, tune: tune}, nil, func(t *testing.T, s *scene) {
		edge, voter := s.named("a-edge-1"), s.named("a-voter")
		quiet, err := voter.running().Service().CreateNamespace(s.ctx, "quiet")
		if err != nil {
			t.Fatal(err)
		}
		const keys = 30
		for i := range keys {
			s.write(voter, nth("busy", i), nth("old", i))
			if _, err := s.put(s.ctx, voter, quiet, nth("quiet", i), nth("calm", i)); err != nil {
				t.Fatal(err)
			}
			s.read(edge, nth("busy", i), api.Consistency{})
			if _, _, err := s.get(s.ctx, edge, quiet, nth("quiet", i), time.Hour, api.Consistency{}); err != nil {
				t.Fatal(err)
			}
		}
		s.isolate(edge, true)
		var last api.WriteResult
		for i := range 300 {
			time.Sleep(200 * time.Millisecond)
			last = s.write(voter, "counter", fmt.Sprint(i))
		}
		s.isolate(edge, false)
		s.within(30*time.Second, "the edge catches up", func() bool { return caughtUp(edge, last.Revision) })
		if voter.metric("kvmesh_feed_ladder_total", "rung=namespaces") == 0 {
			t.Fatal("the rung of the namespaces was not taken")
		}
		before := fills(edge)
		for i := range keys {
			v, value, err := s.get(s.ctx, edge, quiet, nth("quiet", i), time.Hour, api.Consistency{})
			if err != nil || v.Tier != api.TierHit || value != nth("calm", i) {
				t.Errorf("key %d of the quiet namespace: %q, %+v, %v; want a hit", i, value, v, err)
			}
		}
		s.unchanged("fills for the quiet namespace", before, fills(edge))
		for i := range keys {
			if _, value := s.read(edge, nth("busy", i), api.Consistency{Bounded: true, MaxStaleness: time.Second}); value != nth("old", i) {
				t.Errorf("key %d of the busy namespace: %q", i, value)
			}
		}
		if got := fills(edge) - before; got < keys {
			t.Errorf("%v fills for %d keys below a floor; each of them has to be asked for", got, keys)
		}
		if _, value := s.read(edge, "counter", api.Consistency{}); value != "299" {
			t.Errorf("the counter is %s at the edge", value)
		}
	})
}

// TestRelayGoesSilent lets the relay of an edge keep its connections and say nothing more. The edge is fed by another
// node in less than a second, and what it answers is never much older than that.
func TestRelayGoesSilent(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{3}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		voter := s.named("a-voter")
		s.write(voter, "key", "0")
		// Which of two relays feeds the edge does not show outside: it is the one without which the feed moves.
		for n := range 4 {
			edge := s.fedByRelay()
			relays := slices.DeleteFunc(s.edges(), func(m *machine) bool { return m == edge })
			relay := relays[n%2]
			s.read(edge, "key", api.Consistency{})
			before := edge.metric("kvmesh_feed_failovers_total")
			s.net.Cut(relay.ip, edge.ip, true)
			cut := time.Now()
			var moved, worst time.Duration
			for i := 0; time.Since(cut) < 8*time.Second; i++ {
				if i%25 == 0 {
					s.write(voter, "key", fmt.Sprintf("%d.%d", n, i))
				}
				if moved == 0 && edge.metric("kvmesh_feed_failovers_total") > before {
					moved = time.Since(cut)
				}
				v, _ := s.read(edge, "key", api.Consistency{})
				worst = max(worst, v.Staleness)
				time.Sleep(20 * time.Millisecond)
			}
			last := s.write(voter, "key", fmt.Sprint(n, "last"))
			s.within(2*time.Second, "W goes on", func() bool { return caughtUp(edge, last.Revision) })
			t.Logf("%s silent: failover after %v (0: it was not the source), greatest bound %v", relay.name, moved, worst)
			if moved > time.Second {
				t.Errorf("the feed moved after %v", moved)
			}
			if worst > 2500*time.Millisecond {
				t.Errorf("the bound grew to %v", worst)
			}
			s.net.Heal()
			if moved > 0 {
				return
			}
		}
		t.Error("the edge's feed never moved, whichever relay was silent")
	})
}

// fedByRelay waits until one of three edges has followed a relay, and the others the voter, for a while.
func (s *scene) fedByRelay() (edge *machine) {
	s.Helper()
	since := time.Now()
	s.within(2*time.Minute, "one of three edges follows a relay", func() bool {
		var fed []*machine
		for _, m := range s.edges() {
			if m.metric("kvmesh_feed_depth") == 2 {
				fed = append(fed, m)
			}
		}
		if len(fed) != 1 || fed[0] != edge {
			edge, since = nil, time.Now()
		}
		if len(fed) == 1 {
			edge = fed[0]
		}
		return time.Since(since) > 12*time.Second
	})
	return edge
}

// TestFeedCut cuts one edge's feeds, and only those. Hints and pulls keep it fresh, and W goes on.
func TestFeedCut(t *testing.T) {
	t.Parallel()
	var gate *feedGate
	before := func(w *world) { gate = gateFeeds(w.named("b-edge-1")) }
	play(t, shape{edges: []int{1, 1}, voters: 1, tune: bigCaches}, before, func(t *testing.T, s *scene) {
		edge, far := s.named("b-edge-1"), s.named("a-edge-1")
		s.write(far, "hot", "hot at first")
		s.write(far, "cold", "cold at first")
		s.read(edge, "hot", api.Consistency{})
		gate.set(true)
		time.Sleep(2 * time.Second)
		feeds := edge.metric("kvmesh_feed_subscriptions_total")
		var worst, bound time.Duration
		var last api.WriteResult
		for i := range 60 {
			key := []string{"hot", "cold"}[i%2]
			value := fmt.Sprintf("%s.%d", key, i)
			last = s.write(far, key, value)
			acked := time.Now()
			took := s.within(5*time.Second, "write "+value+" is visible with the feed cut", func() bool {
				v, got := s.read(edge, key, api.Consistency{})
				bound = max(bound, v.Staleness)
				return got == value
			})
			worst = max(worst, took)
			time.Sleep(time.Until(acked.Add(time.Second)))
		}
		t.Logf("with the feed cut: visible after at most %v, greatest bound %v", worst, bound)
		s.within(5*time.Second, "W goes on by pulls", func() bool {
			return edge.metric("kvmesh_watermark_revision") >= float64(last.Revision)
		})
		s.unchanged("feeds begun while they were cut", feeds, edge.metric("kvmesh_feed_subscriptions_total"))
		if edge.metric("kvmesh_feed_pulls_total") == 0 {
			t.Error("no record was pulled")
		}
		gate.set(false)
		s.within(10*time.Second, "the feed comes back", func() bool { return edge.metric("kvmesh_feed_subscriptions_total") > feeds })
	})
}

// TestHotKeyNeverStalls writes one key five times a second and reads it a hundred times a second at every edge: no
// reader ever waits for a fill.
func TestHotKeyNeverStalls(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1, 2}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		writer := s.named("a-edge-1")
		if s.leader().region == "b" { // beside the leader, if there is an edge: its acknowledgement is the commit
			writer = s.named("b-edge-1")
		}
		const warmUp, writes = 10, 300
		s.write(writer, "hot", "-1")
		for _, m := range s.edges() {
			s.within(5*time.Second, "the key is there", func() bool { _, value := s.read(m, "hot", api.Consistency{}); return value == "-1" })
		}
		var mu sync.Mutex // guards acked
		var acked []time.Time
		s.clients.Go(func() {
			for i := range writes {
				due := time.Now().Add(200 * time.Millisecond)
				if _, err := s.put(s.ctx, writer, s.ns, "hot", strconv.Itoa(i)); err != nil {
					t.Error(err)
				}
				mu.Lock()
				acked = append(acked, time.Now())
				mu.Unlock()
				time.Sleep(time.Until(due))
			}
		})
		defer s.clients.Wait()
		waits := make(map[*machine]float64)
		visible := make(map[*machine][]time.Time)
		begin := time.Now()
		for tick := 0; tick < writes*20+100; tick++ {
			if tick == warmUp*20 {
				for _, m := range s.edges() {
					waits[m] = m.metric("kvmesh_reads_waiting_on_fill_total")
				}
			}
			for _, m := range s.edges() {
				v, value, err := get(s.ctx, m.running(), s.ns, "hot", time.Minute, api.Consistency{})
				if err != nil {
					t.Fatal(err)
				}
				if tick%10 == 5 { // the full check is dear
					s.history.read(m.name, "hot", time.Now(), demand{ttl: time.Minute}, v, value)
				}
				n, err := strconv.Atoi(value)
				if err != nil || n < len(visible[m])-1 {
					t.Fatalf("%s: %q after %d had shown (%v)", m.name, value, len(visible[m])-1, err)
				}
				for len(visible[m]) <= n {
					visible[m] = append(visible[m], time.Now())
				}
			}
			time.Sleep(time.Until(begin.Add(time.Duration(tick+1) * 10 * time.Millisecond)))
		}
		s.clients.Wait()
		var lags []time.Duration
		for _, m := range s.edges() {
			if len(visible[m]) < writes {
				t.Fatalf("%s has shown %d of %d writes", m.name, len(visible[m]), writes)
			}
			for i := warmUp; i < writes; i++ {
				lags = append(lags, max(visible[m][i].Sub(acked[i]), 0))
			}
		}
		slices.Sort(lags)
		p99 := lags[len(lags)*99/100]
		t.Logf("commit to visible: p50 %v, p99 %v, max %v; slowest one-way delay 45ms", lags[len(lags)/2], p99, lags[len(lags)-1])
		if p99 > time.Second {
			t.Errorf("p99 is %v", p99)
		}
		for _, m := range s.edges() {
			s.unchanged("reads that waited for a fill at "+m.name, waits[m], m.metric("kvmesh_reads_waiting_on_fill_total"))
		}
	})
}

// TestBookmarks reads what one edge has written at all other nodes, at once: with the bookmark of the write it is there.
func TestBookmarks(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{2, 1}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		a := s.named("a-edge-1")
		var mark kv.Bookmark
		for i := range 200 {
			key := nth("key", i%7)
			res := s.write(a, key, fmt.Sprint(i))
			mark = kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf}
			for _, m := range s.machines {
				if m == a {
					continue
				}
				if v, value := s.read(m, key, api.Consistency{Bookmark: mark}); value != fmt.Sprint(i) {
					t.Errorf("%s by %s at %s: %q, older than the bookmark of write %d", key, v.Tier, m.name, value, i)
				}
			}
		}
		for _, bad := range []string{"x", "12.34", mark.String() + "0.", mark.Epoch.String() + ".", mark.Epoch.String() + ".-1"} {
			if got := s.ask(a, "GET", "/v1/kv/default/key-000", "", "Kv-Bookmark", bad); got.status != 400 {
				t.Errorf("the bookmark %q: %d %s", bad, got.status, got.body)
			}
		}
		for _, m := range s.machines {
			future := kv.Bookmark{Epoch: mark.Epoch, Revision: mark.Revision + 1000}
			_, _, err := s.get(s.ctx, m, s.ns, "key-000", time.Hour, api.Consistency{Bookmark: future})
			if kv.CodeOf(err) != kv.CodeInvalidParameter {
				t.Errorf("a bookmark from the future at %s: %v", m.name, err)
			}
			if v, _ := s.read(m, "key-000", api.Consistency{Bookmark: mark}); v.Tier == api.TierStore && m.role == "edge" {
				t.Errorf("a bookmark that %s has passed long ago was read by %s", m.name, v.Tier)
			}
		}

		if err := a.running().NewEpoch(s.ctx); err != nil {
			t.Fatal(err)
		}
		for _, m := range s.machines {
			v, value := s.read(m, "key-003", api.Consistency{Bookmark: mark})
			if v.Tier != api.TierStore || v.Epoch.Compare(mark.Epoch) <= 0 || value != "199" {
				t.Errorf("a bookmark of an older epoch at %s: %q by %s; want a strong read", m.name, value, v.Tier)
			}
		}
		foreign := kv.Bookmark{Epoch: kv.NewEpoch(time.Now().Add(time.Hour).UnixMilli(), kv.Epoch{}), Revision: 5}
		ctx, cancel := context.WithTimeout(s.ctx, opTimeout)
		defer cancel()
		if v, _, err := get(ctx, a.running(), s.ns, "key-003", time.Hour, api.Consistency{Bookmark: foreign}); err != nil || v.Tier != api.TierStore {
			t.Errorf("a bookmark of an epoch that nobody knows: %+v, %v; want a strong read", v, err)
		}
	})
}
