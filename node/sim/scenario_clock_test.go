package sim

import (
	"fmt"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// TestWrongWallClock sets one voter's wall clock wrong by an hour, from the beginning or while the mesh runs. Keys with a
// time to live expire when they should at every node, and do not come back.
func TestWrongWallClock(t *testing.T) {
	for _, c := range []struct {
		name       string
		boot, jump time.Duration // of a-voter from the start; of the leader later
	}{
		{"ahead from the start", time.Hour, 0},
		{"behind from the start", -time.Hour, 0},
		{"the leader jumps ahead", 0, time.Hour},
		{"the leader jumps back", 0, -time.Hour},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			before := func(w *world) { w.named("a-voter").clock.setWall(c.boot) }
			play(t, shape{edges: []int{1}, voters: 3, tune: bigCaches}, before, func(t *testing.T, s *scene) {
				const ttl = 20
				deaths := make(map[string]time.Time)
				for i, m := range s.machines {
					key := nth("early", i)
					if a := s.ask(m, "PUT", fmt.Sprintf("/v1/kv/default/%s?expiration_ttl=%d", key, ttl), key); a.status/100 != 2 {
						t.Fatalf("%d %s", a.status, a.body)
					}
					deaths[key] = time.Now().Add(ttl * time.Second)
				}
				time.Sleep(500 * time.Millisecond)
				s.everywhere(deaths)
				s.leader().clock.setWall(s.leader().clock.wall + c.jump)
				for i, m := range s.machines { // at once, before the voters have compared their clocks
					key := nth("late", i)
					if a := s.ask(m, "PUT", fmt.Sprintf("/v1/kv/default/%s?expiration_ttl=%d", key, ttl), key); a.status/100 != 2 {
						t.Fatalf("%d %s", a.status, a.body)
					}
					deaths[key] = time.Now().Add(ttl * time.Second)
				}
				for range 50 {
					time.Sleep(time.Second)
					s.everywhere(deaths)
				}
				// Another leader, with another clock.
				l := s.leader()
				s.crash(l)
				time.Sleep(5 * time.Second)
				s.boot(l)
				s.allReady()
				s.everywhere(deaths)
			})
		})
	}
}

// everywhere reads the keys at every machine, and fails the test where one is gone early or still there late.
func (s *scene) everywhere(deaths map[string]time.Time) {
	s.Helper()
	// An expiry is a whole second, and mesh time reaches a node one crossing late.
	const early, late = 2 * time.Second, time.Second
	for key, death := range deaths {
		for _, m := range s.machines {
			left := time.Until(death)
			_, value := s.see(m, key)
			if alive := value == key; (left > early && !alive) || (left < -late && alive) {
				s.Fatalf("%s at %s: %q, %v before its end", key, m.name, value, left)
			}
		}
	}
}

// see reads a key that is not in the history.
func (s *scene) see(m *machine, key string) (*api.Value, string) {
	s.Helper()
	v, value, err := get(s.ctx, m.running(), s.ns, key, time.Hour, api.Consistency{})
	if err != nil {
		s.Fatalf("read of %s at %s: %v", key, m.name, err)
	}
	return v, value
}

// TestEdgeSleeps lets an edge's machine sleep while things change and expire. Right after it has woken, the bounds that it
// states cover the sleep, and what has expired meanwhile is not shown.
func TestEdgeSleeps(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1, 1}, voters: 1, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge, voter := s.named("b-edge-1"), s.named("a-voter")
		const keys, slept = 10, 40 * time.Second
		for i := range keys {
			s.write(voter, nth("key", i), nth("old", i))
			s.read(edge, nth("key", i), api.Consistency{})
		}
		if a := s.ask(voter, "PUT", "/v1/kv/default/dies?expiration_ttl=20", "x"); a.status/100 != 2 {
			t.Fatalf("%d %s", a.status, a.body)
		}
		s.see(edge, "dies")
		time.Sleep(2 * time.Second)

		s.isolate(edge, true)
		edge.clock.stop(true)
		for i := range keys / 2 {
			s.write(voter, nth("key", i), nth("new", i))
		}
		time.Sleep(slept)
		edge.clock.stop(false)

		for i := range keys {
			v, value := s.read(edge, nth("key", i), api.Consistency{})
			if v.Staleness < slept {
				t.Errorf("right after a sleep of %v key %d is %q by %s, with a bound of %v", slept, i, value, v.Tier, v.Staleness)
			}
			if _, _, err := s.get(s.ctx, edge, s.ns, nth("key", i), time.Hour, api.Consistency{Bounded: true, MaxStaleness: 5 * time.Second}); kv.CodeOf(err) != kv.CodeStaleBeyondLimit {
				t.Errorf("a limit of 5s right after a sleep of %v: %v", slept, err)
			}
		}
		if v, value, err := get(s.ctx, edge.running(), s.ns, "dies", time.Hour, api.Consistency{}); value != "" {
			t.Errorf("a key that expired during the sleep: %q %+v %v", value, v, err)
		}
		if a := s.ask(edge, "GET", "/v1/kv/default/dies", ""); a.status != 404 && a.status != 503 {
			t.Errorf("a key that expired during the sleep: %d %s", a.status, a.body)
		}
		s.isolate(edge, false)
		for i := range keys {
			s.within(30*time.Second, "the edge is fresh again", func() bool {
				v, value := s.read(edge, nth("key", i), api.Consistency{})
				return v.Tier == api.TierHit && v.Staleness < 2*time.Second && (value == nth("new", i)) == (i < keys/2)
			})
		}
		if v, _ := s.see(edge, "dies"); !v.Absent {
			t.Errorf("an expired key is back: %+v", v)
		}
	})
}
