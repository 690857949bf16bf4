package raftstore

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// mendLog takes damaged entries out of the log that are not needed any more, as a snapshot would have done. What it cannot
// mend is an error for Rescue.
//
// An entry is not needed when a snapshot covers it, or when the durable state has applied it, everything after the state's
// index is whole, and the membership there is known. Then a snapshot is taken at that index and the log is cut behind it:
// log, state and vote say afterwards what they said before, so it is safe at any time, without asking anybody.
func (s *Store) mendLog(log *diskLog) error {
	first := log.audit.first
	covered := s.snaps.newestIndex()
	if worst := log.audit.worst(covered); worst > 0 {
		applied := s.state.Applied()
		if applied.Index < worst {
			return fmt.Errorf("%w: up to entry %d, and the state stands at %d", errLost, worst, applied.Index)
		}
		conf, confIndex, err := s.configurationAt(log, applied.Index)
		if err != nil {
			return err
		}
		if err := s.state.Witness(applied.Index, applied.Term); err != nil {
			return err
		}
		m, err := newSnapshotMeta(applied.Index, applied.Term, conf, confIndex)
		if err != nil {
			return err
		}
		if err := s.snaps.record(&m); err != nil {
			return err
		}
		covered = applied.Index
	}
	n := len(log.audit.bad)
	if n == 0 || first == 0 {
		return nil
	}
	to := min(max(log.audit.bad[n-1].hi, first), covered)
	s.opts.Logger.Warn("the log had damaged entries that are not needed any more", "from", first, "to", to)
	if err := log.DeleteRange(first, to); err != nil {
		return err
	}
	log.audit = logAudit{}
	return nil
}

var (
	// errLost says that this voter has acknowledged what it does not have any more.
	errLost            = errors.New("entries of the log are damaged or missing")
	errNoConfiguration = fmt.Errorf("%w, a membership may be among them", errLost)
)

// configurationAt is the membership in force at an index that the state has applied. Every entry says which membership
// entry was the newest when it was written, so that it can be told whether a damaged one was.
func (s *Store) configurationAt(log *diskLog, index uint64) (raft.Configuration, uint64, error) {
	var l raft.Log
	newest := uint64(0)
	found := false
	for i := index; i <= log.audit.last && !found; i++ {
		m, err := log.sealedLog.read(i, &l)
		if err != nil {
			continue
		}
		newest, found = m.config, true
	}
	if !found || newest > index {
		return raft.Configuration{}, 0, errNoConfiguration
	}
	if snap := s.snaps.newest(); snap != nil && newest <= snap.Index {
		return snap.raft().Configuration, snap.ConfigurationIndex, nil
	}
	if newest == 0 {
		return raft.Configuration{}, 0, errNoConfiguration
	}
	if _, err := log.sealedLog.read(newest, &l); err != nil || l.Type != raft.LogConfiguration {
		return raft.Configuration{}, 0, errors.Join(errNoConfiguration, err)
	}
	return raft.DecodeConfiguration(l.Data), newest, nil
}
