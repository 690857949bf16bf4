package raftstore

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
)

// MemberInfo is what a voter or learner says of itself to the leader, about every second.
type MemberInfo struct {
	DiskFull bool         // it has no room for writes
	Kinds    command.Kind // the highest kind of command that it knows
}

// Info is what this node says.
func (s *Store) Info() MemberInfo {
	return MemberInfo{DiskFull: s.space.full.Load(), Kinds: s.set.kinds}
}

// Heard takes over what another member has said of itself just now.
func (s *Store) Heard(nodeID string, info MemberInfo) {
	s.members.heard(s.mono(), nodeID, info)
	s.members.review(s)
}

// memberInfos is what is known of the others.
type memberInfos struct {
	mu sync.Mutex // guards by
	by map[string]heardInfo

	// refusal is why no write can be taken, nil when it can: too many voters have no room.
	refusal atomic.Pointer[string]
}

type heardInfo struct {
	MemberInfo
	at time.Duration // monotonic
}

func newMemberInfos() *memberInfos { return &memberInfos{by: make(map[string]heardInfo)} }

func (m *memberInfos) heard(at time.Duration, id string, info MemberInfo) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.by[id] = heardInfo{info, at}
}

// of is what a member said, and whether it said so just now.
func (m *memberInfos) of(s *Store, id string) (MemberInfo, bool) {
	return m.after(s, id, s.mono()-infoFresh)
}

// after is what a member said, and whether it said so after a moment.
func (m *memberInfos) after(s *Store, id string, moment time.Duration) (MemberInfo, bool) {
	if id == s.opts.NodeID {
		return s.Info(), true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	got, ok := m.by[id]
	return got.MemberInfo, ok && got.at > moment
}

// review decides whether writes can be taken, and forgets who is no member any more. A voter that does not answer counts as
// one with room: whether it is alive shows elsewhere.
func (m *memberInfos) review(s *Store) {
	if s.raft == nil { // Open has not come so far
		return
	}
	servers := s.configuration().Servers
	voters, full := 0, 0
	known := make(map[string]struct{}, len(servers))
	for _, srv := range servers {
		known[string(srv.ID)] = struct{}{}
		if srv.Suffrage != raft.Voter {
			continue
		}
		voters++
		if info, fresh := m.of(s, string(srv.ID)); fresh && info.DiskFull {
			full++
		}
	}
	var why *string
	switch {
	case s.space.full.Load():
		text := fmt.Sprintf("the disk of the leader (node %s) is nearly full", s.opts.NodeID)
		why = &text
	case voters > 0 && voters-full < voters/2+1:
		text := fmt.Sprintf("the disks of %d of %d voters are nearly full", full, voters)
		why = &text
	}
	m.refusal.Store(why)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.by {
		if _, ok := known[id]; !ok {
			delete(m.by, id)
		}
	}
}

// Writable is nil when this node has room for writes, and otherwise the error to refuse them with.
func (s *Store) Writable() error {
	if s.space.full.Load() {
		return errDiskFull(fmt.Sprintf("the disk of voter %s is nearly full", s.opts.NodeID))
	}
	return nil
}
