package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"kvmesh/raftstore/seal"
)

// diskLog is the log of production: sealed entries in bbolt, term and vote in two files beside it.
//
//	raft.db          the entries
//	vote.1, vote.2   the same record twice: term, vote, index of the newest snapshot, the log's key wrapped by the KEK
type diskLog struct {
	*sealedLog
	*votes
	audit logAudit
}

// DiskLog keeps the log on disk, sealed by a key of its own that is wrapped by kek. Every append is fsynced. Opening it reads
// every entry: a damaged one, and one that has got lost, is known before anything depends on it.
func DiskLog(kek *seal.KEK) LogStore {
	return func(dir string) (Log, error) {
		l, err := openDiskLog(dir, kek)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
}

func openDiskLog(dir string, kek *seal.KEK) (_ *diskLog, err error) {
	if kek == nil {
		return nil, errors.New("raftstore: a log on disk needs a key-encryption key")
	}
	path := filepath.Join(dir, logFile)
	there, err := exists(path)
	if err != nil {
		return nil, err
	}
	voted, err := anyExists(dir, voteFiles[:]...)
	if err != nil {
		return nil, err
	}
	if there && !voted {
		return nil, fmt.Errorf("%s: the files with this voter's term and vote (%s, %s) are missing. %s", dir, voteFiles[0], voteFiles[1], remedyRejoin)
	}
	v, _, err := openVotes(dir, kek)
	if errors.Is(err, errVoteLost) && !errors.Is(err, seal.ErrWrongKey) && !errors.Is(err, seal.ErrVersion) {
		err = fmt.Errorf("%w. %s", err, remedyRejoin)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.close())
		}
	}()
	if !there {
		if len(v.values) > 0 {
			return nil, fmt.Errorf("%s: the log (%s) is missing, although this voter has taken part in elections. %s", dir, logFile, remedyRejoin)
		}
		if err := createBolt(path); err != nil {
			return nil, err
		}
	}
	key, err := kek.OpenLogKey(v.wrapped)
	if err != nil {
		return nil, err
	}
	l := &diskLog{votes: v, sealedLog: &sealedLog{key: key, notes: v}}
	var tx uint64
	if l.audit, tx, err = l.inspect(path); err != nil {
		return nil, err
	}
	if err := (logNote{tx: tx, before: l.held, after: l.held}).write(v); err != nil {
		return nil, err
	}
	if l.bolt, err = openBolt(path); err != nil {
		return nil, err
	}
	return l, nil
}

// replaceDiskLog puts an empty file in the place of the entries, and leaves term and vote as they are.
func replaceDiskLog(dir string, kek *seal.KEK) error {
	if err := createBolt(filepath.Join(dir, logFile)); err != nil {
		return err
	}
	v, _, err := openVotes(dir, kek)
	if err != nil {
		return err
	}
	return errors.Join(v.Set(noteKey, nil), v.close()) // a note about the other file
}

func (l *diskLog) Close() error { return errors.Join(l.bolt.close(), l.votes.close()) }

func exists(path string) (bool, error) {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return true, nil
	case errors.Is(err, os.ErrNotExist):
		return false, nil
	default:
		return false, err
	}
}

func anyExists(dir string, names ...string) (bool, error) {
	for _, name := range names {
		if there, err := exists(filepath.Join(dir, name)); there || err != nil {
			return there, err
		}
	}
	return false, nil
}
