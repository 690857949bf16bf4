package raftstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// logFile is the log's file within the data directory.
const logFile = "raft.db"

// boltLog is the file of raft-boltdb, every append fsynced. Of a write that failed it says what raft-boltdb does not know:
// whether it is in the file all the same. The other half of raft-boltdb, its StableStore, is not used; see votes.
type boltLog struct {
	store *raftboltdb.BoltStore
	file  *os.File // the same file, for its header pages
}

// openBolt opens a file that checkBolt has found whole, or makes an empty one.
func openBolt(path string) (_ *boltLog, err error) {
	store, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout: time.Second, // for the file lock
			// With the free list in the file every append gets slower as free pages pile up behind truncations.
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
			// Address space, not memory: remapping a grown file would wait for every reader.
			InitialMmapSize: 1 << 28,
		},
		NoSync:                  mutSkipLogSync,
		MsgpackUseNewTimeFormat: true,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errLocked(path)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return &boltLog{store: store, file: file}, nil
}

func errLocked(path string) error {
	return fmt.Errorf("%s is locked: another process uses this data directory; stop it or choose another directory", path)
}

// createBolt makes a file without entries, whole and durable, or none.
func createBolt(path string) error {
	tmp := path + tmpSuffix
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	b, err := openBolt(tmp)
	if err == nil {
		err = b.close()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("create %s: %w", path, err), os.RemoveAll(tmp))
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (b *boltLog) close() error { return errors.Join(b.store.Close(), b.file.Close()) }

// FirstIndex is 0 when the log is empty, and so is LastIndex.
func (b *boltLog) FirstIndex() (uint64, error) { return b.store.FirstIndex() }

func (b *boltLog) LastIndex() (uint64, error) { return b.store.LastIndex() }

// GetLog returns an error that wraps errDamagedEntry for an entry that makes no sense.
func (b *boltLog) GetLog(index uint64, l *raft.Log) error {
	err := b.store.GetLog(index, l)
	if err == nil || errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, bolterrors.ErrDatabaseNotOpen) {
		return err
	}
	return fmt.Errorf("%w: entry %d: %w", errDamagedEntry, index, err)
}

// transaction is the number of the newest transaction in the file. Opening it is one, without effect.
func (b *boltLog) transaction() (uint64, error) {
	m, err := readBoltMetas(b.file)
	return m.tx, err
}

// StoreLogs returns when the entries are durable. They are written in the transaction tx, which follows the newest. An error
// that wraps syscall.ENOSPC or syscall.EDQUOT says that nothing was written and that it may be tried again; after any other
// nobody knows what the file holds. DeleteRange does the same. Nobody else may write meanwhile.
func (b *boltLog) StoreLogs(tx uint64, logs []*raft.Log) error {
	return b.written(tx, b.store.StoreLogs(logs))
}

// DeleteRange removes the entries lo..hi.
func (b *boltLog) DeleteRange(tx, lo, hi uint64) error {
	return b.written(tx, b.store.DeleteRange(lo, hi))
}

// written judges the error of the transaction tx. It tells a full disk, after which the file is as it was, from everything
// else. bbolt writes and fsyncs the data pages, then a header page, and fsyncs again: once the header is written, the
// transaction may survive or not, whatever the reason for the error.
func (b *boltLog) written(tx uint64, err error) error {
	full := fullDisk(err)
	if err == nil || full == nil {
		return err
	}
	newest, merr := b.transaction()
	if merr != nil {
		return fmt.Errorf("%v; and then: %w", err, merr)
	}
	if newest >= tx {
		return fmt.Errorf("%v, after the transaction was written", err) // not wrapped: this is no full disk that heals
	}
	return fmt.Errorf("%w: %w", full, err)
}

// fullDisk is the system's error for a full disk or a used-up quota when err is about one, also where bbolt tells it by its
// text only; otherwise nil.
func fullDisk(err error) error {
	for _, full := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		if err != nil && (errors.Is(err, full) || strings.HasSuffix(err.Error(), full.Error())) {
			return full
		}
	}
	return nil
}
