package raftstore

import (
	"fmt"

	"kvmesh/raftstore/state"
)

// remedyRejoin is what helps a single voter whose directory cannot be trusted, as long as a majority of the others lives.
const remedyRejoin = "If the other voters are well, move the data directory aside and start again: this voter will be " +
	"brought up to date by them. Otherwise put back what is missing, from where it was moved to or from a backup."

// standing is where the three parts of a data directory say they stand.
type standing struct {
	first, last uint64 // of the log; 0, 0 when it is empty
	snapshot    uint64 // index of the newest snapshot
	installed   uint64 // applied index of the last installed checkpoint
	applied     uint64 // of the state
	term        uint64 // the log's vote and term
	known       uint64 // the newest term that state and snapshots have seen
	recorded    uint64 // index of the newest snapshot that the log knows of
}

// Keys in the StableStore: the library's term and the term of its last vote, and the index of the newest snapshot.
var (
	termKey     = []byte("CurrentTerm")
	voteTermKey = []byte("LastVoteTerm")
	snapshotKey = []byte("kvmesh/snapshot")
)

func standingOf(log Log, snaps *snapshotStore, applied state.Applied) (standing, error) {
	at := standing{applied: applied.Index, installed: snaps.installed(), known: applied.Term}
	if m := snaps.newest(); m != nil {
		at.snapshot, at.known = m.Index, max(at.known, m.Term)
	}
	var err error
	for key, to := range map[string]*uint64{string(termKey): &at.term, string(snapshotKey): &at.recorded} {
		if *to, err = log.GetUint64([]byte(key)); err != nil && err.Error() != errNotFound.Error() {
			return at, fmt.Errorf("read the log: %w", err) // the library, too, knows that error by its text only
		}
	}
	if at.first, err = log.FirstIndex(); err != nil {
		return at, fmt.Errorf("read the log: %w", err)
	}
	if at.last, err = log.LastIndex(); err != nil {
		return at, fmt.Errorf("read the log: %w", err)
	}
	return at, nil
}

// check refuses directories in which acknowledged writes would be forgotten or applied onto the wrong state. Raft replays
// the log from the snapshot on, the state skips what it has; so together they must leave no hole, and the state must not
// know more than Raft can account for: a voter that has forgotten a part of its log may elect a leader that never had it,
// and one that has forgotten its vote may vote twice.
func (at standing) check(dir string) error {
	switch {
	case at.term < at.known:
		return fmt.Errorf("%s: the state has seen term %d, but the log knows of term %d only: the log (%s), and this voter's "+
			"vote with it, is missing or older than the state. %s", dir, at.known, at.term, logFile, remedyRejoin)
	case at.applied > max(at.last, at.snapshot, at.installed):
		return fmt.Errorf("%s: the state has applied entry %d, but the log ends at %d and the last snapshot stands at %d: "+
			"the log (%s) is missing or older than the state. %s",
			dir, at.applied, at.last, max(at.snapshot, at.installed), logFile, remedyRejoin)
	case at.applied < at.snapshot:
		return fmt.Errorf("%s: the state has applied entry %d only, but the snapshot at %d says that it had more: "+
			"the state (%s) is missing or older than the log. %s",
			dir, at.applied, at.snapshot, stateDir, remedyRejoin)
	case at.snapshot < at.recorded || at.last > 0 && at.first > at.snapshot+1:
		return fmt.Errorf("%s: the log has been cut up to entry %d, and there is no snapshot that covers what came before (%s). %s",
			dir, max(at.recorded, max(at.first, 1)-1), snapshotsDir, remedyRejoin)
	}
	return nil
}

// cutBootstrap says that a crash fell between the two steps of a bootstrap: the library writes term 1 first and the entry
// with the voters then, and after that term alone it refuses to bootstrap for ever. No leader has ever spoken in term 1
// (the first election begins term 2), so without an entry and without a vote nothing was promised in it.
func (at standing) cutBootstrap(log Log) (bool, error) {
	if at.term != 1 || at.last != 0 || at.snapshot != 0 || at.applied != 0 {
		return false, nil
	}
	vote, err := log.GetUint64(voteTermKey)
	if err != nil && err.Error() != errNotFound.Error() {
		return false, fmt.Errorf("read the log: %w", err)
	}
	return vote == 0, nil
}
