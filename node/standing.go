package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

// What a voter or learner says of its own place in the mesh.
const (
	standingUnknown = ""        // it has not found out yet, or its log says that it is a member and no leader contradicts
	standingJoining = "joining" // it has never been a member
	standingMember  = "member"  // a leader speaks to it
	standingRemoved = "removed" // it was a member, and a leader has confirmed that it is none any more
)

const (
	// standEvery is how often a node looks at its own place when nothing else makes it look.
	standEvery = time.Second
	// standPatience is how long a member goes without a leader before it asks around whether it still is one.
	standPatience = 2 * time.Second
	// lineageTimeout bounds the question for one other member's lineage. Raft connections wait for the first round of them.
	lineageTimeout = time.Second
)

// standing finds out what this node is to the others. A node that was removed while it was away has a log that says
// otherwise, and nobody speaks to it; one that belongs to an older lineage than the mesh must not speak to anybody. Both
// have to be told, and tell the operator what to do.
type standing struct {
	self    string
	store   *raftstore.Store // set once it is open
	id      *identity
	dir     *directory
	gossip  *gossip.Gossip
	rpc     *peer.Client
	cluster func() kv.ClusterID
	log     *slog.Logger
	fail    func(error)

	// met is closed once everybody who was known when this node met the pool was asked for his lineage, or did not answer.
	// No Raft connection is made before: the voters of a superseded lineage would be a quorum of their own for a moment.
	met  chan struct{}
	once sync.Once

	mu       sync.Mutex // guards all below
	state    string
	why      string               // for people; "" = nothing to say
	asked    map[string]time.Time // members whose lineage is known, by their gossip.Member.Since
	leaderAt time.Time            // when this node had a leader last
}

func newStanding(n *Node) *standing {
	return &standing{
		self: n.id.nodeID, id: n.id, dir: n.dir, gossip: n.gossip, rpc: n.rpc,
		cluster: func() kv.ClusterID { c, _ := n.control.current(); return c.Cluster },
		log:     n.component("standing"), fail: n.fail, met: make(chan struct{}), asked: make(map[string]time.Time), leaderAt: time.Now(),
	}
}

// now is the standing, and what there is to say about it. A member that a leader speaks to need not ask anybody.
func (s *standing) now() (state, why string) {
	if s.spokenTo() {
		return standingMember, ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.why
}

// spokenTo reports whether this node's log says that it is a member, and a leader does not contradict.
func (s *standing) spokenTo() bool {
	leader, _ := s.store.Leader()
	return leader != "" && s.store.IsMember(s.self)
}

// outside reports that this node is no member, so that its state and its log say nothing about the mesh.
func (s *standing) outside() bool {
	state, _ := s.now()
	return state == standingRemoved || state == standingJoining
}

// run looks until ctx ends.
func (s *standing) run(ctx context.Context) {
	tick := time.NewTicker(standEvery)
	defer tick.Stop()
	for {
		changed, leads := s.gossip.Changed(), s.store.LeaderChanged()
		s.lookAtLineages(ctx)
		s.look(ctx)
		select {
		case <-changed:
		case <-leads:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look judges this node's place by its own log and by who speaks to it, and asks around where these do not tell.
func (s *standing) look(ctx context.Context) {
	m := s.store.Membership()
	leader, _ := s.store.Leader()
	s.mu.Lock()
	if leader != "" {
		s.leaderAt = time.Now()
	}
	lonely := time.Since(s.leaderAt) >= standPatience
	s.mu.Unlock()
	switch in := m.Has(s.self); {
	case in && leader != "":
		if m.Index > 0 {
			if err := s.id.setMember(); err != nil {
				s.fail(fmt.Errorf("it cannot be written down that this node is a member: %w", err))
				return
			}
		}
		s.set(standingMember, "")
		return
	case in && !lonely:
		return
	}
	s.ask(ctx)
}

// ask asks the others who is a member. Only an answer that a leader gave after it was asked counts.
func (s *standing) ask(ctx context.Context) {
	res, err := findMembers(ctx, s.rpc, s.dir, s.self)
	was := s.id.member.Load()
	switch {
	case ctx.Err() != nil:
	case err != nil && !was:
		s.set(standingJoining, "this node waits for the leader of the mesh to take it in")
	case err != nil: // nobody can say
	case slices.Contains(res.Members.Voters, s.self) || slices.Contains(res.Members.Learners, s.self):
		s.set(standingUnknown, "")
	case was:
		s.dir.observed(res.Leader, res.Members)
		s.set(standingRemoved, fmt.Sprintf("this node was removed from the mesh; \"kvmesh cluster join %s\" takes it back, "+
			"or move its data directory %s aside and start it again as a new node", s.self, s.id.dir))
	case res.Refused != "":
		s.dir.observed(res.Leader, res.Members)
		s.set(standingJoining, "the leader does not take this node in: "+res.Refused)
	default:
		s.set(standingJoining, "this node waits for the leader of the mesh to take it in")
	}
}

func (s *standing) set(state, why string) {
	s.mu.Lock()
	news := state != s.state || why != s.why
	s.state, s.why = state, why
	s.mu.Unlock()
	switch {
	case !news:
	case state == standingRemoved:
		s.log.Warn(why)
	case why != "":
		s.log.Info(why)
	case state != standingUnknown:
		s.log.Info("this node is a " + state + " of the central store")
	}
}

// findMembers asks one node after the other, following what they say about the leader, until a confirmed one answers.
func findMembers(ctx context.Context, rpc *peer.Client, dir *directory, self string) (wire.MembersResult, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	leader, _ := dir.Leader()
	queue := append([]string{leader}, dir.Voters()...)
	for _, m := range dir.gossip.Members() { // members that this node does not know as such
		if m.Role != certs.RoleEdge && m.Reachable() {
			queue = append(queue, m.ID)
		}
	}
	asked := map[string]bool{"": true, self: true}
	var last error = kv.Errorf(kv.CodeNoLeader, "no voter is known that could be asked")
	for len(queue) > 0 && ctx.Err() == nil {
		id := queue[0]
		queue = queue[1:]
		if asked[id] {
			continue
		}
		asked[id] = true
		one, stop := context.WithTimeout(ctx, lineageTimeout)
		reply, err := rpc.Call(one, id, peer.Call{Method: wire.MethodMembers, Idempotent: true})
		stop()
		var res wire.MembersResult
		if err == nil {
			err = peer.Decode(reply.Result, &res)
		}
		switch {
		case err != nil:
			last = err
		case res.Confirmed:
			return res, nil
		default:
			queue = append([]string{res.Leader}, queue...)
			last = kv.Errorf(kv.CodeNoLeader, "the mesh has no leader just now")
		}
	}
	return wire.MembersResult{}, errors.Join(last, ctx.Err())
}

// lookAtLineages asks every voter and learner that was met since the last time which line its log belongs to.
func (s *standing) lookAtLineages(ctx context.Context) {
	if s.gossip.JoinState().Waiting() {
		return
	}
	defer s.once.Do(func() { close(s.met) })
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, m := range s.gossip.Members() {
		if m.Self || !m.Reachable() || m.Role == certs.RoleEdge {
			continue
		}
		s.mu.Lock()
		known := s.asked[m.ID].Equal(m.Since)
		s.mu.Unlock()
		if known {
			continue
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, lineageTimeout)
			defer cancel()
			st, err := askStatus(ctx, s.rpc, m.ID)
			if err != nil {
				return // asked again with the next look
			}
			s.mu.Lock()
			s.asked[m.ID] = m.Since
			s.mu.Unlock()
			own := s.store.Lineage()
			has, err := s.store.Bootstrapped()
			switch {
			case err != nil || !has || st.Lineage.IsZero() || st.Cluster != s.cluster():
			case own.Compare(st.Lineage) < 0:
				s.fail(raftstore.Superseded(own, st.Lineage))
			case own.Compare(st.Lineage) > 0:
				s.log.Warn("a node holds data from before the mesh was recovered; move its data directory aside and start it again as a new node",
					"node", m.ID, "name", m.Name, "generation", st.Lineage, "mesh", own)
			}
		})
	}
}

// waitMet waits until the lineages of those who were met first are known.
func (s *standing) waitMet(ctx context.Context) error {
	select {
	case <-s.met:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
