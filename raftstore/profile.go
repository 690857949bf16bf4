package raftstore

import (
	"fmt"
	"math"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// Profile says what kind of network lies between the voters, instead of a knob for every timer.
type Profile uint8

// The profiles.
const (
	// ProfileLAN is for voters in one region: a dead leader is replaced in well under a second.
	ProfileLAN Profile = iota
	// ProfileWAN is for voters in several regions, with round trips up to about 300 ms.
	ProfileWAN
	// ProfileTest has the shortest timers and takes snapshots after a few hundred entries, so that tests reach everything.
	ProfileTest
	// ProfilePatient is ProfileWAN with timers of several seconds, for tests in real time on a machine that may stand still for
	// a second or two: whatever leader there is remains.
	ProfilePatient
	// ProfileTestPatient takes snapshots like ProfileTest and has the timers of ProfilePatient.
	ProfileTestPatient
)

// settings are what a profile means.
type settings struct {
	heartbeat, election, lease time.Duration
	// commit is how long an idle leader waits before it tells its followers the commit index once more, should a notice of
	// it have been lost (see announcer). It sets the chatter of an idle cluster, and while such a request is under way the
	// library sends nothing else to its member: a new entry waits for the round trip to end.
	commit time.Duration
	// rpc is the deadline of one request to a voter; of a checkpoint it is the deadline per 256 KiB.
	rpc time.Duration
	// A snapshot is due when this much has been logged since the last one.
	snapshotBytes   int64
	snapshotEntries uint64
	// At most this much of the log is kept behind a snapshot, for followers that were away for a while.
	trailingBytes   int64
	trailingEntries uint64
	// duty is how often a leader looks for work: expired keys, a change index that is too long.
	duty time.Duration
	// A member is stable when it has been well for this long, and dead when it has not been heard for that long.
	stable, dead time.Duration
	// changes is the length of the change index, in revisions, above which it is cut back to three quarters. With keys of
	// the largest size the default makes about 1 GiB.
	changes kv.Revision
	// baseKinds may always be proposed, kinds is the highest that this node knows; see gate.
	baseKinds, kinds command.Kind
}

const (
	// maxAppendEntries and maxAppendBytes bound one AppendEntries request; the library knows the first one only. Without
	// pipelining a follower gets one request a round trip, so the count has to hold a round trip's worth of single writes
	// across a continent.
	maxAppendEntries = 256
	maxAppendBytes   = 1 << 20
	// logCacheEntries is how many of the newest log entries are kept in memory for the replicators.
	logCacheEntries = 512
)

func (p Profile) settings() (settings, error) {
	const mib = 1 << 20
	s := settings{
		heartbeat: 300 * time.Millisecond, election: 300 * time.Millisecond, lease: 200 * time.Millisecond,
		commit: 100 * time.Millisecond, rpc: 5 * time.Second,
		snapshotBytes: 64 * mib, snapshotEntries: 32 << 10,
		trailingBytes: 64 * mib, trailingEntries: 64 << 10,
		duty: time.Second, changes: 2 << 20,
		stable: 3 * time.Second, dead: time.Minute,
		baseKinds: command.BaseKinds, kinds: command.Highest,
	}
	switch p {
	case ProfileLAN:
	case ProfileWAN:
		s.heartbeat, s.election, s.lease = time.Second, time.Second, 500*time.Millisecond
		s.commit, s.rpc = 250*time.Millisecond, 10*time.Second
		s.stable = 5 * time.Second
	case ProfileTest:
		s.heartbeat, s.election, s.lease = 150*time.Millisecond, 150*time.Millisecond, 100*time.Millisecond
		s.commit = 5 * time.Millisecond
		s.snapshotBytes, s.snapshotEntries = 256<<10, 256
		s.trailingBytes, s.trailingEntries = 64<<10, 64
		s.duty = 100 * time.Millisecond
		s.stable, s.dead = 500*time.Millisecond, 3*time.Second
		s.baseKinds = command.Highest // there, nobody has told the leader what the others know
	case ProfilePatient, ProfileTestPatient:
		s.heartbeat, s.election, s.lease = 3*time.Second, 3*time.Second, 3*time.Second
		s.rpc = 10 * time.Second
		s.stable, s.dead = 500*time.Millisecond, 3*time.Second
		if p == ProfileTestPatient {
			s.snapshotBytes, s.snapshotEntries = 256<<10, 256
			s.trailingBytes, s.trailingEntries = 64<<10, 64
			s.baseKinds = command.Highest
		}
	default:
		return s, fmt.Errorf("unknown profile %d", p)
	}
	return s, nil
}

func (s settings) raftConfig(nodeID string) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(nodeID)
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = s.heartbeat, s.election, s.lease
	c.CommitTimeout = s.commit
	c.MaxAppendEntries = maxAppendEntries
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.NoSnapshotRestoreOnStart = true
	c.NoLegacyTelemetry = true
	c.PreVoteDisabled = false
	c.TrailingLogs = s.trailingEntries
	// Snapshots are asked for by the compactor, which counts bytes as well and does not cut the log under a running transfer.
	c.SnapshotThreshold = math.MaxUint64
	c.SnapshotInterval = time.Hour
	return c
}
