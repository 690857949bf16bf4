package sim

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/certs"
)

// votes are the names of the machines that have a vote, and pending those of the voters that have none yet, as m says it.
func (s *scene) votes(m *machine) (votes, pending []string) {
	s.Helper()
	var doc api.Membership
	if a := s.ask(m, "GET", "/v1/cluster/members", ""); a.status != 200 || json.Unmarshal([]byte(a.body), &doc) != nil {
		s.Fatalf("members: %d %s", a.status, a.body)
	}
	for _, row := range doc.Members {
		switch row.Vote {
		case api.VoteYes:
			votes = append(votes, row.Name)
		case api.VotePending:
			pending = append(pending, row.Name)
		}
	}
	slices.Sort(votes)
	return votes, pending
}

// TestLearner: a learner has everything and no vote, however long it runs, and is the nearest voter of its region for fills.
func TestLearner(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{0, 0, 1}, voters: 2, learners: []string{"c"}, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge, voter, learner := s.named("c-edge-1"), s.named("a-voter"), s.named("c-learner")
		const keys = 20
		for i := range keys {
			s.write(voter, nth("key", i), nth("value", i))
		}
		time.Sleep(90 * time.Second)
		if votes, pending := s.votes(edge); strings.Join(votes, " ") != "a-voter b-voter" || len(pending) > 0 {
			t.Errorf("%q vote, %q wait for it", votes, pending)
		}
		served := func(m *machine) float64 { return m.metric("kvmesh_rpc_requests_total", "method=fill", "code=ok") }
		others := served(voter) + served(s.named("b-voter"))
		before := served(learner)
		for i := range keys {
			if _, value := s.read(edge, nth("key", i), api.Consistency{}); value != nth("value", i) {
				t.Errorf("key %d is %q", i, value)
			}
		}
		if got := served(learner) - before; got < keys {
			t.Errorf("the learner of the region served %v of %d fills", got, keys)
		}
		s.unchanged("fills by the voters far away", others, served(voter)+served(s.named("b-voter")))
		if v, value := s.read(learner, "key-003", api.Consistency{Strong: true}); value != "value-003" {
			t.Errorf("a strong read at the learner: %q %+v", value, v)
		}
	})
}

// TestDeadVoterIsReplaced: a voter dies, and a new one is started somewhere else. It waits for its vote until the old one is
// surely dead, and then takes its place. Writes go on all the time.
func TestDeadVoterIsReplaced(t *testing.T) {
	t.Parallel()
	play(t, shape{edges: []int{1}, voters: 3, tune: bigCaches}, nil, func(t *testing.T, s *scene) {
		edge := s.named("a-edge-1")
		s.write(edge, "key-000", "before")
		s.crash(s.named("c-voter"))
		died := time.Now()
		spare := s.add(certs.RoleVoter, "c", "spare")
		s.plug(spare)
		s.boot(spare)
		s.within(time.Minute, "the new voter is a member", func() bool {
			_, pending := s.votes(edge)
			return slices.Contains(pending, "spare")
		})
		for time.Since(died) < 50*time.Second {
			time.Sleep(time.Second)
			s.write(edge, "key-000", time.Since(died).String())
			if votes, _ := s.votes(edge); strings.Join(votes, " ") != "a-voter b-voter c-voter" {
				t.Fatalf("%q vote %v after one of them died", votes, time.Since(died))
			}
		}
		s.within(time.Minute, "the new voter has the dead one's place", func() bool {
			votes, _ := s.votes(edge)
			return strings.Join(votes, " ") == "a-voter b-voter spare"
		})
		s.crash(s.named("b-voter")) // one more may die now
		s.within(time.Minute, "a write with the new voter's vote", func() bool {
			a := s.ask(edge, "PUT", "/v1/kv/default/key-001", "after")
			return a.status == 200
		})
	})
}
