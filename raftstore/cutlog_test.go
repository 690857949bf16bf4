package raftstore

import (
	"errors"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// failingLog is a log in memory whose disk fails when told to.
type failingLog struct {
	memoryLog
	store, remove error
}

func (l *failingLog) StoreLogs(logs []*raft.Log) error {
	if l.store != nil {
		return l.store
	}
	return l.memoryLog.StoreLogs(logs)
}

func (l *failingLog) DeleteRange(lo, hi uint64) error {
	if l.remove != nil {
		return l.remove
	}
	return l.memoryLog.DeleteRange(lo, hi)
}

type noEvents struct{}

func (noEvents) storing([]*raft.Log) {}
func (noEvents) stored([]*raft.Log)  {}

// A follower whose leader contradicts the end of its log cuts that off and appends what belongs there. When the disk is full
// in between, the library goes on with the old end in mind: it stands in elections and answers for entries that are gone,
// and cannot take any entry again. A full disk alone is no reason to end; such a log is.
func TestFullDiskAfterTheLogWasCut(t *testing.T) {
	entries := func(from, to, term uint64) (logs []*raft.Log) {
		for i := from; i <= to; i++ {
			logs = append(logs, &raft.Log{Index: i, Term: term})
		}
		return logs
	}
	for name, tc := range map[string]struct {
		do    func(w *watchedLog, disk *failingLog) error
		fatal bool
	}{
		"full": {func(w *watchedLog, disk *failingLog) error {
			disk.store = syscall.ENOSPC
			return w.StoreLogs(entries(11, 12, 1))
		}, false},
		"full after the beginning was cut": {func(w *watchedLog, disk *failingLog) error {
			err := w.DeleteRange(1, 5)
			disk.store = syscall.ENOSPC
			return errors.Join(err, w.StoreLogs(entries(11, 12, 1)))
		}, false},
		"full after the end was cut": {func(w *watchedLog, disk *failingLog) error {
			err := w.DeleteRange(8, 10)
			disk.store = syscall.EDQUOT
			return errors.Join(err, w.StoreLogs(entries(8, 8, 2)))
		}, true},
		"full when the end is to be cut": {func(w *watchedLog, disk *failingLog) error {
			disk.remove = syscall.ENOSPC
			err := w.DeleteRange(8, 10)
			disk.remove, disk.store = nil, syscall.ENOSPC
			return errors.Join(err, w.StoreLogs(entries(11, 11, 1)))
		}, false},
		"full after the end was replaced": {func(w *watchedLog, disk *failingLog) error {
			err := errors.Join(w.DeleteRange(8, 10), w.StoreLogs(entries(8, 9, 2)))
			disk.store = syscall.ENOSPC
			return errors.Join(err, w.StoreLogs(entries(10, 10, 2)))
		}, false},
		"broken": {func(w *watchedLog, disk *failingLog) error {
			disk.store = syscall.EIO
			return w.StoreLogs(entries(11, 12, 1))
		}, true},
		"broken when the end is to be cut": {func(w *watchedLog, disk *failingLog) error {
			disk.remove = syscall.EIO
			return w.DeleteRange(8, 10)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			disk := &failingLog{memoryLog: memoryLog{raft.NewInmemStore()}}
			var fatal error
			w := &watchedLog{
				Log: disk, events: noEvents{}, meter: &logMeter{chunks: make(map[uint64]int64)},
				fatal: func(err error) { fatal = err }, grown: func() {},
			}
			if err := w.StoreLogs(entries(1, 10, 1)); err != nil {
				t.Fatal(err)
			}
			if err := tc.do(w, disk); err == nil {
				t.Error("nothing failed")
			}
			if (fatal != nil) != tc.fatal {
				t.Errorf("this node has to end: %v, want that: %v", fatal, tc.fatal)
			}
		})
	}
}
