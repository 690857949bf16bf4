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
// once in a cluster's life, by one voter, or by all of them with the same list. It fails when Bootstrapped.
func (s *Store) Bootstrap(voters []string) error {
	if !slices.Contains(voters, s.opts.NodeID) {
		return fmt.Errorf("bootstrap: %s is not among the voters %v", s.opts.NodeID, voters)
	}
	var c raft.Configuration
	for _, id := range voters {
		c.Servers = append(c.Servers, raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
	}
	if err := s.raft.BootstrapCluster(c).Error(); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	return nil
}

// AddMember makes a node a voter. It joins without a vote first and gets it once its log has caught up, so that it never
// counts for a quorum that it cannot help with. When ctx ends before that, the node stays a member without a vote; the
// call may be repeated. Leader only.
func (s *Store) AddMember(ctx context.Context, nodeID string) error {
	id, addr := raft.ServerID(nodeID), raft.ServerAddress(nodeID)
	servers := s.configuration().Servers
	at := slices.IndexFunc(servers, func(m raft.Server) bool { return m.ID == id })
	if at >= 0 && servers[at].Suffrage == raft.Voter {
		return nil
	}
	if at < 0 {
		if err := s.change(ctx, func() raft.Future { return s.raft.AddNonvoter(id, addr, 0, 0) }); err != nil {
			return fmt.Errorf("add %s: %w", nodeID, err)
		}
	}
	if err := s.caughtUp(ctx, id); err != nil {
		return fmt.Errorf("%s is a member without a vote, and has not caught up: %w", nodeID, err)
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

// RemoveMember takes a node out of the cluster. It refuses when too few of the remaining voters are answering for them to
// have a quorum. Removing a node that is no member succeeds. Leader only.
func (s *Store) RemoveMember(ctx context.Context, nodeID string) error {
	id := raft.ServerID(nodeID)
	servers := s.configuration().Servers
	if !slices.ContainsFunc(servers, func(m raft.Server) bool { return m.ID == id }) {
		return nil
	}
	term, ok := s.leaderTerm()
	if !ok {
		return s.errNotLeader()
	}
	voters, well := 0, 0
	for _, m := range servers {
		if m.ID == id || m.Suffrage != raft.Voter {
			continue
		}
		voters++
		a, heard := s.acks.of(term, m.ID)
		if m.ID == raft.ServerID(s.opts.NodeID) || heard && s.heard(a) {
			well++
		}
	}
	if well < voters/2+1 {
		return kv.Errorf(kv.CodeNoQuorum, "without %s only %d of %d voters would answer, which is no quorum: bring them back first",
			nodeID, well, voters)
	}
	if err := s.change(ctx, func() raft.Future { return s.raft.RemoveServer(id, 0, 0) }); err != nil {
		return fmt.Errorf("remove %s: %w", nodeID, err)
	}
	return nil
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
		return errNoLeader("leadership is being handed over")
	case ctx.Err() != nil, errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown):
		return kv.Errorf(kv.CodeOutcomeUnknown, "the membership may have changed: %v", err)
	default:
		return err
	}
}

// TransferLeadership hands leadership to the voter that is furthest ahead. It returns once this node no longer leads, or
// with an error and this node still leading. It succeeds at once on a node that does not lead.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if s.raft.State() != raft.Leader {
		return nil
	}
	if err := s.await(ctx, func() raft.Future { return s.raft.LeadershipTransfer() }); err != nil {
		return fmt.Errorf("hand leadership over: %w", err)
	}
	return nil
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
