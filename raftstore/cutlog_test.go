package raftstore

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// failingLog is a log in memory whose disk fails when told to.
type failingLog struct {
	memoryLog
	store, remove fault
}

// fault is an error to be met, nil for none.
type fault struct{ atomic.Pointer[error] }

func (f *fault) set(err error) { f.Store(&err) }

func (f *fault) get() error {
	if err := f.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *failingLog) StoreLogs(logs []*raft.Log) error {
	if err := l.store.get(); err != nil {
		return err
	}
	return l.memoryLog.StoreLogs(logs)
}

func (l *failingLog) DeleteRange(lo, hi uint64) error {
	if err := l.remove.get(); err != nil {
		return err
	}
	return l.memoryLog.DeleteRange(lo, hi)
}

type noEvents struct{}

func (noEvents) storing([]*raft.Log) {}
func (noEvents) stored([]*raft.Log)  {}
func (noEvents) refused([]*raft.Log) {}

// A follower whose leader contradicts the end of its log cuts that off and appends what belongs there. When the disk is full
// in between, the library would go on with the old end in mind: it would stand in elections and answer for entries that
// are gone, and could not take any entry again. So the append waits for space there; anywhere else it fails at once.
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
		waits bool
	}{
		"full": {func(w *watchedLog, disk *failingLog) error {
			disk.store.set(syscall.ENOSPC)
			return w.StoreLogs(entries(11, 12, 1))
		}, false, false},
		"full after the beginning was cut": {func(w *watchedLog, disk *failingLog) error {
			err := w.DeleteRange(1, 5)
			disk.store.set(syscall.ENOSPC)
			return errors.Join(err, w.StoreLogs(entries(11, 12, 1)))
		}, false, false},
		"full after the end was cut": {func(w *watchedLog, disk *failingLog) error {
			err := w.DeleteRange(8, 10)
			disk.store.set(syscall.EDQUOT)
			return errors.Join(err, w.StoreLogs(entries(8, 8, 2)))
		}, false, true},
		"full when the end is to be cut": {func(w *watchedLog, disk *failingLog) error {
			disk.remove.set(syscall.ENOSPC)
			err := w.DeleteRange(8, 10)
			disk.remove.set(nil)
			disk.store.set(syscall.ENOSPC)
			return errors.Join(err, w.StoreLogs(entries(11, 11, 1)))
		}, false, false},
		"full after the end was replaced": {func(w *watchedLog, disk *failingLog) error {
			err := errors.Join(w.DeleteRange(8, 10), w.StoreLogs(entries(8, 9, 2)))
			disk.store.set(syscall.ENOSPC)
			return errors.Join(err, w.StoreLogs(entries(10, 10, 2)))
		}, false, false},
		"broken": {func(w *watchedLog, disk *failingLog) error {
			disk.store.set(syscall.EIO)
			return w.StoreLogs(entries(11, 12, 1))
		}, true, false},
		"broken when the end is to be cut": {func(w *watchedLog, disk *failingLog) error {
			disk.remove.set(syscall.EIO)
			return w.DeleteRange(8, 10)
		}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				disk := &failingLog{memoryLog: memoryLog{raft.NewInmemStore()}}
				var fatal error
				closing := make(chan struct{})
				w := &watchedLog{
					Log: disk, events: noEvents{}, meter: &logMeter{chunks: make(map[uint64]int64)}, closing: closing,
					fatal: func(err error) { fatal = err }, grown: func() {}, full: func() {}, snapshot: func() uint64 { return 5 },
					dog: newWatchdog(func() { t.Error("a full disk counts as one that hangs") }, func(error) {}),
				}
				if err := w.StoreLogs(entries(1, 10, 1)); err != nil {
					t.Fatal(err)
				}
				done := make(chan error, 1)
				go func() { done <- tc.do(w, disk) }()
				time.Sleep(time.Minute)
				select {
				case err := <-done:
					if tc.waits || err == nil {
						t.Errorf("it came back with %v", err)
					}
				default:
					if !tc.waits {
						t.Fatal("it waits")
					}
					disk.store.set(nil)
					if err := <-done; err != nil {
						t.Error(err)
					}
					if last, err := disk.LastIndex(); last != 8 || err != nil {
						t.Errorf("the log ends at %d, %v", last, err)
					}
				}
				if (fatal != nil) != tc.fatal {
					t.Errorf("this node has to end: %v, want that: %v", fatal, tc.fatal)
				}
			})
		})
	}
}
