package sim

import (
	"fmt"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// TestVoterRestartsInOutage crashes all voters and lets one of them come back alone. It gives what its own state holds,
// says that it cannot date it, and refuses whatever demands more; when the others are back, everything is as it was.
func TestVoterRestartsInOutage(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		const keys = 10
		voters := s.only(certs.RoleVoter)
		var last api.WriteResult
		for i := range keys {
			last = s.write(s.edges()[0], nth("key", i), nth("value", i))
		}
		alone := voters[1]
		s.within(10*time.Second, "the voter has everything", func() bool { return caughtUp(alone, last.Revision) })
		for _, v := range voters {
			s.crash(v)
		}
		s.boot(alone)
		time.Sleep(5 * time.Second)
		for i := range keys {
			a := s.ask(alone, "GET", "/v1/kv/default/"+nth("key", i), "")
			if a.status != 200 || a.body != nth("value", i) || a.header.Get("Kv-Cache") != "stale" ||
				a.header.Get("Kv-Stale-Reason") == "" || a.header.Get("Kv-Staleness-Ms") != "" {
				t.Fatalf("key %d at a voter alone: %d %q %v", i, a.status, a.body, a.header)
			}
		}
		reached := kv.Bookmark{Epoch: last.Epoch, Revision: last.Revision}
		beyond := kv.Bookmark{Epoch: last.Epoch, Revision: last.Revision + 100}
		if a := s.ask(alone, "GET", "/v1/kv/default/key-000", "", "Kv-Bookmark", reached.String()); a.status != 200 {
			t.Errorf("a bookmark that the own state has reached: %d %s", a.status, a.body)
		}
		for name, ask := range map[string][]string{
			"a bookmark beyond the own state": {"/v1/kv/default/key-000", "Kv-Bookmark", beyond.String()},
			"a limit":                         {"/v1/kv/default/key-000", "Kv-Max-Staleness", "86400000"},
			"a strong read":                   {"/v1/kv/default/key-000?consistency=strong"},
			"an absence":                      {"/v1/kv/default/nothing"},
		} {
			if a := s.ask(alone, "GET", ask[0], "", ask[1:]...); a.status != 503 {
				t.Errorf("%s at a voter alone: %d %s; want 503", name, a.status, a.body)
			}
		}
		if a := s.ask(alone, "GET", "/v1/kv/default?limit=100", ""); a.status != 200 || a.header.Get("Kv-Staleness-Ms") != "" {
			t.Errorf("a listing at a voter alone: %d %v %s", a.status, a.header, a.body)
		}

		for _, v := range voters {
			if v != alone {
				s.boot(v)
			}
		}
		s.allReady()
		s.write(alone, "key-000", "new")
		for _, m := range s.machines {
			for i := 1; i < keys; i++ {
				if v, value := s.read(m, nth("key", i), api.Consistency{Bounded: true, MaxStaleness: time.Minute}); value != nth("value", i) {
					t.Errorf("key %d at %s: %q by %s", i, m.name, value, v.Tier)
				}
			}
			s.within(5*time.Second, fmt.Sprint("the new value is at ", m.name), func() bool {
				_, value := s.read(m, "key-000", api.Consistency{})
				return value == "new"
			})
		}
	})
}
