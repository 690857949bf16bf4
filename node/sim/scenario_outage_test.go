package sim

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// TestVotersOutOfReach takes the voters from the edges. What an edge holds it goes on serving, known absences too, with a
// bound that grows and stays true; a limit that cannot be met is refused with the age that could be had; writes fail fast.
func TestVotersOutOfReach(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1, 1}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge, voter := s.named("b-edge-1"), s.named("a-voter")
		const keys = 20
		for i := range keys {
			s.write(voter, nth("key", i), nth("old", i))
			for _, m := range s.edges() {
				s.read(m, nth("key", i), api.Consistency{})
				s.read(m, nth("absent", i), api.Consistency{})
			}
		}
		time.Sleep(2 * time.Second)
		within := func(d time.Duration) api.Consistency { return api.Consistency{Bounded: true, MaxStaleness: d} }
		before := fills(edge)
		for i := range keys {
			if v, _ := s.read(edge, nth("key", i), within(time.Second)); v.Tier != api.TierHit {
				t.Errorf("a limit of 1s with a healthy feed is met by %s; want a hit", v.Tier)
			}
		}
		s.unchanged("fills while memory meets the limit", before, fills(edge))

		s.cutVoters(true)
		cut := time.Now()
		time.Sleep(5 * time.Second)
		a := s.ask(edge, "GET", "/v1/kv/default/key-003", "", "Kv-Max-Staleness", "1000")
		possible := regexp.MustCompile(`(\d+) ms old`).FindStringSubmatch(a.body)
		if a.status != 503 || !strings.Contains(a.body, string(kv.CodeStaleBeyondLimit)) || possible == nil {
			t.Fatalf("a limit that nobody can meet: %d %s", a.status, a.body)
		}
		age, _ := strconv.Atoi(possible[1])
		waited := time.Since(cut)
		if d := time.Duration(age) * time.Millisecond; d < waited-time.Second || d > waited+2*time.Second {
			t.Errorf("%v after the cut the possible age is said to be %v", waited, d)
		}
		if v, _ := s.read(edge, "key-003", within(waited+10*time.Second)); v.Tier != api.TierHit {
			t.Errorf("a limit that memory can meet in an outage is met by %s", v.Tier)
		}

		// The voters are alive and take writes: the bound has to cover them.
		last := time.Duration(0)
		for round := range 10 {
			s.write(voter, nth("key", round), fmt.Sprintf("new-%d", round))
			for i := range keys {
				for _, name := range []string{nth("key", i), nth("absent", i)} {
					start := time.Now()
					v, _, err := s.get(s.ctx, edge, s.ns, name, time.Minute, api.Consistency{})
					if err != nil {
						t.Fatalf("%s %v into the outage: %v", name, time.Since(cut), err)
					}
					if v.Absent != strings.HasPrefix(name, "absent") {
						t.Errorf("%s: absent is %v", name, v.Absent)
					}
					if took := time.Since(start); took > 250*time.Millisecond {
						t.Errorf("%s took %v, although it is held", name, took)
					}
					if v.Staleness < last-time.Second {
						t.Errorf("%s: the bound is %v, after one of %v", name, v.Staleness, last)
					}
					last = max(last, v.Staleness)
				}
			}
			time.Sleep(10 * time.Second)
		}
		if total := time.Since(cut); last < total-15*time.Second || last > total+time.Second {
			t.Errorf("%v into the outage the bound is %v", total, last)
		}
		a = s.ask(edge, "GET", "/v1/kv/default/key-019", "")
		if a.status != 200 || a.header.Get("Kv-Stale-Reason") == "" || a.header.Get("Kv-Cache") != "stale" {
			t.Errorf("an entry beyond its cache_ttl: %d %v", a.status, a.header)
		}
		if a = s.ask(edge, "GET", "/v1/kv/default/never-read", ""); a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("a key that is not held: %d %v %s; want 503 with Retry-After", a.status, a.header, a.body)
		}
		start := time.Now()
		a = s.ask(edge, "PUT", "/v1/kv/default/key-000", "x")
		if a.status != 503 || !strings.Contains(a.body, string(kv.CodeNoQuorum)) || time.Since(start) > 2*time.Second {
			t.Errorf("a write %v into the outage: %d %s after %v; want no_quorum at once", start.Sub(cut), a.status, a.body, time.Since(start))
		}

		s.cutVoters(false)
		s.within(time.Minute, "a write goes through again", func() bool {
			ctx, cancel := context.WithTimeout(s.ctx, opTimeout)
			defer cancel()
			_, err := s.put(ctx, edge, s.ns, "key-000", fmt.Sprint("back ", time.Now().UnixNano()))
			return err == nil
		})
	})
}

// TestUnknownNamespaceWithAHungLeader: who asks for a namespace that a node does not know gets an answer of another voter
// while the leader hangs and nobody has noticed yet.
func TestUnknownNamespaceWithAHungLeader(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1, 1}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		time.Sleep(2 * time.Second)
		s.isolate(s.leader(), true)
		for _, m := range s.edges() {
			if a := s.ask(m, "GET", "/v1/kv/nowhere/key", ""); a.status != 404 || !strings.Contains(a.body, string(kv.CodeNamespaceNotFound)) {
				t.Errorf("at %s: %d %s", m.name, a.status, a.body)
			}
		}
	})
}

// TestColdEdges restarts the whole mesh, so that all edges are cold at once, and reads every key everywhere: the store
// is asked about once for each key and region.
func TestColdEdges(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{3, 3, 3}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		const keys = 200
		for i := range keys {
			s.write(s.machines[i%len(s.machines)], nth("key", i), nth("value", i))
		}
		for _, m := range s.machines {
			s.crash(m)
		}
		for _, m := range s.machines {
			s.boot(m)
		}
		s.allReady()
		var wg sync.WaitGroup
		for _, m := range s.edges() {
			for part := range 8 {
				wg.Go(func() {
					for i := part; i < keys; i += 8 {
						ctx, cancel := context.WithTimeout(s.ctx, opTimeout)
						_, value, err := s.get(ctx, m, s.ns, nth("key", i), time.Minute, api.Consistency{})
						cancel()
						if err != nil || value != nth("value", i) {
							t.Errorf("key %d at %s: %q, %v", i, m.name, value, err)
						}
					}
				})
			}
		}
		wg.Wait()
		var region, store, failed float64
		for _, m := range s.edges() {
			region += m.metric("kvmesh_fills_total", "tier=region", "result=ok")
			failed += m.metric("kvmesh_fills_total", "result=failed")
			store += m.metric("kvmesh_fills_total", "tier=central") + m.metric("kvmesh_fills_total", "tier=store")
		}
		each := store / keys / 3
		t.Logf("%v fills from owners, %v from the store, %v in vain: %.3f for each key and region", region, store, failed, each)
		if each > 1.1 {
			t.Errorf("the store was asked %.3f times for each key and region", each)
		}
	})
}

// TestRestartInOutage restarts an edge while no voter lives. It still knows the namespaces, and never takes what it cannot
// know for an absence.
func TestRestartInOutage(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{2}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge, other, voter := s.named("a-edge-1"), s.named("a-edge-2"), s.named("a-voter")
		if _, err := voter.running().Service().CreateNamespace(s.ctx, "mine"); err != nil {
			t.Fatal(err)
		}
		if got := s.ask(edge, "PUT", "/v1/kv/mine/key", "value"); got.status/100 != 2 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		for _, m := range s.edges() {
			s.within(5*time.Second, "the namespace is known", func() bool { return s.ask(m, "GET", "/v1/kv/mine/key", "").status == 200 })
		}
		s.crash(voter)
		s.crash(edge)
		time.Sleep(time.Second)
		s.boot(edge)
		for round := range 4 {
			if _, err := edge.running().Service().Namespace(s.ctx, "mine"); err != nil {
				t.Errorf("a namespace from before the restart: %v", err)
			}
			for _, path := range []string{"/v1/kv/mine/key", "/v1/kv/mine/nothing", "/v1/kv/default/key", "/v1/kv/unheard-of/key"} {
				if got := s.ask(edge, "GET", path, ""); got.status != 503 {
					t.Errorf("round %d: GET %s: %d %s; want 503", round, path, got.status, got.body)
				}
			}
			if got := s.ask(other, "GET", "/v1/kv/mine/key", ""); got.status != 200 || got.body != "value" {
				t.Errorf("the edge that was not restarted: %d %s", got.status, got.body)
			}
			time.Sleep(15 * time.Second)
		}
		s.boot(voter)
		s.within(30*time.Second, "the restarted edge serves", func() bool {
			got := s.ask(edge, "GET", "/v1/kv/mine/key", "")
			if got.status == 404 {
				t.Fatalf("404 for a key that exists: %s", got.body)
			}
			return got.status == 200 && got.body == "value"
		})
		if got := s.ask(edge, "GET", "/v1/kv/mine/nothing", ""); got.status != 404 {
			t.Errorf("a key that never was: %d %s", got.status, got.body)
		}
	})
}
