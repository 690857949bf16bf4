package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
)

// Bootstrapped reports whether this directory has ever been part of a cluster.
func (s *Store) Bootstrapped() (bool, error) {
	return raft.HasExistingState(s.log, s.log, s.snaps)
}

// Bootstrap makes the first configuration of a new cluster: the node ids of its voters, this node among them. It is done
// once in a cluster's life, by one voter; the others take configuration and lineage from it. It fails when Bootstrapped.
func (s *Store) Bootstrap(voters []string) error {
	if !slices.Contains(voters, s.opts.NodeID) {
		return fmt.Errorf("bootstrap: %s is not among the voters %v", s.opts.NodeID, voters)
	}
	var c raft.Configuration
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	if has, err := s.Bootstrapped(); err != nil || has {
		return errors.Join(errors.New("bootstrap: this node has a log already"), err)
	}
	if err := s.lineages.set(kv.Lineage{Generation: 1, ID: kv.NewEpoch(s.meshNow(), kv.Epoch{})}); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if err := s.raft.BootstrapCluster(c).Error(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// Membership is who belongs to the cluster, as a node's log says it. A node that was removed while it was away has an old
// one; Index orders those of one lineage.
type Membership struct {
	Index            uint64   // of the log entry that says so; 0 when this node does not know yet that it is committed
	Voters, Learners []string // sorted; learners have no vote: yet, or for good
}

// Has reports whether a node is a member.
func (m Membership) Has(id string) bool {
	return slices.Contains(m.Voters, id) || slices.Contains(m.Learners, id)
}

// Membership reads it without waiting for anything.
func (s *Store) Membership() Membership {
	m := membersOf(s.configuration(), 0)
	known := s.fsm.members.Load()
	if snap := s.snaps.newest(); snap != nil && (known == nil || known.Index < snap.ConfigurationIndex) {
		of := membersOf(snap.raft().Configuration, snap.ConfigurationIndex)
		known = &of
	}
	if known != nil && slices.Equal(known.Voters, m.Voters) && slices.Equal(known.Learners, m.Learners) {
		m.Index = known.Index
	}
	return m
}

// IsMember reports whether node votes or learns. Unlike Membership it costs next to nothing.
func (s *Store) IsMember(node string) bool {
	return slices.ContainsFunc(s.configuration().Servers, func(srv raft.Server) bool { return string(srv.ID) == node })
}

func membersOf(c raft.Configuration, index uint64) Membership {
	m := Membership{Index: index}
	for _, srv := range c.Servers {
		if srv.Suffrage == raft.Voter {
			m.Voters = append(m.Voters, string(srv.ID))
		} else {
			m.Learners = append(m.Learners, string(srv.ID))
		}
	}
	slices.Sort(m.Voters)
	slices.Sort(m.Learners)
	return m
}

// AddMember makes a node a member without a vote: it is sent the log, and counts for nothing. A node that is a member
// already stays what it is. Leader only.
func (s *Store) AddMember(ctx context.Context, nodeID string) error {
	if s.Membership().Has(nodeID) {
		return nil
	}
	id, addr := raft.ServerID(nodeID), raft.ServerAddress(nodeID)
	if err := s.change(ctx, func() raft.Future { return s.raft.AddNonvoter(id, addr, 0, 0) }); err != nil {
		return fmt.Errorf("add %s: %w", nodeID, err)
	}
	return nil
}

// Promote gives a member its vote, once its log has reached what is committed now, so that it never counts for a quorum
// that it cannot help with. Whether it has been well for long enough is the caller's to judge, by Progress. When ctx ends
// before, it stays without a vote, and the call may be repeated. Leader only.
func (s *Store) Promote(ctx context.Context, nodeID string) error {
	m := s.Membership()
	switch {
	case slices.Contains(m.Voters, nodeID):
		return nil
	case !slices.Contains(m.Learners, nodeID):
		return kv.Errorf(kv.CodeRefused, "%s is no member, and cannot be given a vote", nodeID)
	}
	id, addr := raft.ServerID(nodeID), raft.ServerAddress(nodeID)
	term, ok := s.leaderTerm()
	if !ok {
		return s.errNotLeader()
	}
	if silent, err := s.silent(ctx, term, []string{nodeID}); err != nil || len(silent) > 0 {
		return errors.Join(errNoQuorum(nodeID+" does not answer, and stays without a vote"), err)
	}
	if err := s.caughtUp(ctx, id); err != nil {
		return fmt.Errorf("%s stays without a vote, it has not caught up: %w", nodeID, err)
	}
	if err := s.change(ctx, func() raft.Future { return s.raft.AddVoter(id, addr, 0, 0) }); err != nil {
		return fmt.Errorf("give %s its vote: %w", nodeID, err)
	}
	return nil
}

// caughtUp waits until the log of a member has reached what is committed now.
func (s *Store) caughtUp(ctx context.Context, id raft.ServerID) error {
	target := s.raft.CommitIndex()
	tick := time.NewTicker(s.set.heartbeat) // the member's progress is known from its answers, which nobody announces
	defer tick.Stop()
	for {
		term, ok := s.leaderTerm()
		if !ok {
			return s.errNotLeader()
		}
		if a, ok := s.acks.of(term, id); ok && a.match >= target {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errNoQuorum("it did not answer, or the log goes on faster than it follows")
		}
	}
}

// QuorumLossError refuses a removal after which the voters that answer would be no quorum. It has CodeRefused.
type QuorumLossError struct {
	Node   string
	Remain []string // the voters that would remain
	Down   []string // those of them that do not answer
}

func (e *QuorumLossError) Error() string {
	if len(e.Remain) == 0 {
		return fmt.Sprintf("%s is the only voter: without it there is no mesh", e.Node)
	}
	return fmt.Sprintf("without %s only %d of %d voters would answer, which is no quorum; %v do not answer",
		e.Node, len(e.Remain)-len(e.Down), len(e.Remain), e.Down)
}

// Unwrap gives the error its code.
func (e *QuorumLossError) Unwrap() error { return kv.Errorf(kv.CodeRefused, "%s", e.Error()) }

// ErrLeaderStays refuses the removal of the leader by itself: it has to hand the leadership over first.
var ErrLeaderStays = errors.New("the leader has to hand the leadership over before it can be removed")

// RemoveMember takes another node out of the cluster. A removal that would leave too few voters that answer for a quorum is
// a *QuorumLossError, that of the leader itself ErrLeaderStays. Removing a node that is no member succeeds. Leader only.
func (s *Store) RemoveMember(ctx context.Context, nodeID string) error {
	m := s.Membership()
	if !m.Has(nodeID) {
		return nil
	}
	term, ok := s.leaderTerm()
	if !ok {
		return s.errNotLeader()
	}
	loss := &QuorumLossError{Node: nodeID}
	for _, id := range m.Voters {
		if id != nodeID {
			loss.Remain = append(loss.Remain, id)
		}
	}
	var err error
	if loss.Down, err = s.silent(ctx, term, loss.Remain); err != nil {
		return err
	}
	// A member without a vote takes nothing with it.
	votes := slices.Contains(m.Voters, nodeID)
	if well := len(loss.Remain) - len(loss.Down); votes && well < len(loss.Remain)/2+1 && !mutRemoveBlindly {
		return loss
	}
	if nodeID == s.opts.NodeID {
		return ErrLeaderStays
	}
	if err := s.change(ctx, func() raft.Future { return s.raft.RemoveServer(raft.ServerID(nodeID), 0, 0) }); err != nil {
		return fmt.Errorf("remove %s: %w", nodeID, err)
	}
	return nil
}

// silent returns those of the members who do not answer a request that is sent now. What they answered before says nothing:
// one that has just died would be counted on. Heartbeats go out several times within the time that this waits.
func (s *Store) silent(ctx context.Context, term uint64, ids []string) ([]string, error) {
	asked := s.acks.ticket()
	giveUp := time.NewTimer(2 * s.set.heartbeat)
	defer giveUp.Stop()
	tick := time.NewTicker(s.set.heartbeat / 10)
	defer tick.Stop()
	for waited := false; ; {
		silent := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
			a, ok := s.acks.of(term, raft.ServerID(id))
			return id == s.opts.NodeID || ok && a.ticket > asked
		})
		if len(silent) == 0 || waited {
			return silent, nil
		}
		select {
		case <-tick.C:
		case <-giveUp.C:
			waited = true
		case <-ctx.Done():
			return nil, errNoQuorum("the members did not answer in time")
		}
	}
}

// heard says whether an answer is so fresh that its sender is alive.
func (s *Store) heard(a ack) bool { return s.mono()-a.at < 2*s.set.heartbeat }

// change waits for a change of the configuration to commit.
func (s *Store) change(ctx context.Context, call func() raft.Future) error {
	err := s.await(ctx, call)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return s.errNotLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errHandingOver()
	case ctx.Err() != nil, errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return kv.Errorf(kv.CodeOutcomeUnknown, "the membership may have changed: %v", err)
	default:
		return err
	}
}

// TransferLeadership hands leadership to a voter, "" = to the one that is furthest ahead. It returns once this node no
// longer leads, or with an error and this node still leading. Without a name it succeeds at once on a node that does not
// lead.
func (s *Store) TransferLeadership(ctx context.Context, to string) error {
	if s.raft.State() != raft.Leader {
		if to != "" {
			return s.errNotLeader()
		}
		return nil
	}
	call := func() raft.Future { return s.raft.LeadershipTransfer() }
	switch {
	case to == s.opts.NodeID:
		return nil
	case to != "" && !slices.Contains(s.Membership().Voters, to):
		return kv.Errorf(kv.CodeRefused, "%s has no vote, and cannot lead", to)
	case to != "":
		call = func() raft.Future {
			return s.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
		}
	}
	if err := s.handOver(ctx, call); err != nil {
		return kv.Errorf(kv.CodeUnavailable, "the leadership could not be handed over, and may move later: %v", err)
	}
	return nil
}

// handOver has Raft transfer the leadership when no write is on its way.
func (s *Store) handOver(ctx context.Context, transfer func() raft.Future) error {
	release := s.combiner.hold(ctx)
	defer release()
	return s.await(ctx, transfer)
}

func (s *Store) configuration() raft.Configuration {
	return s.raft.GetConfiguration().Configuration() // answered from a copy; never fails or waits
}

// Status describes one voter as it sees itself.
type Status struct {
	NodeID string
	Raft   string // follower, candidate, leader or shutdown
	Leader string // node id, empty when unknown
	Term   uint64
	// Of the log: the last entry, the last committed one that this node knows of, and where the state stands. No-op and
	// configuration entries never reach the state, so it may stand a little below the commit index for good.
	LastIndex, CommitIndex, AppliedIndex uint64
	SnapshotIndex                        uint64
	Voters, Nonvoters                    []string
	LogBytes                             int64 // estimated
	InFlightBytes                        int64 // of proposals
}

// Status reads it all without waiting for anything. The parts may be of slightly different moments.
func (s *Store) Status() Status {
	leader, _ := s.Leader()
	st := Status{
		NodeID: s.opts.NodeID, Raft: stateName(s.raft.State()), Leader: leader, Term: s.raft.CurrentTerm(),
		LastIndex: s.raft.LastIndex(), CommitIndex: s.raft.CommitIndex(), AppliedIndex: s.state.Applied().Index,
		SnapshotIndex: s.snaps.newestIndex(), LogBytes: s.log.meter.bytes(), InFlightBytes: s.combiner.inFlight(),
	}
	for _, m := range s.configuration().Servers {
		if m.Suffrage == raft.Voter {
			st.Voters = append(st.Voters, string(m.ID))
		} else {
			st.Nonvoters = append(st.Nonvoters, string(m.ID))
		}
	}
	return st
}

func stateName(r raft.RaftState) string {
	switch r {
	case raft.Follower:
		return "follower"
	case raft.Candidate:
		return "candidate"
	case raft.Leader:
		return "leader"
	default:
		return "shutdown"
	}
}
