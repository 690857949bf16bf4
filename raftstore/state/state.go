// Package state is the deterministic state machine of the central store, kept in Pebble. Its input is the committed Raft
// log (package command); the same log gives the same content on every voter, byte for byte, however it is cut into Apply
// calls. It assigns the dense revisions, keeps the change index from which the feed is served, and knows where it stands
// (Applied) in the same atomic write as the data. It reads no clock and no randomness and starts no goroutine.
//
// Apply writes to memory: the Raft log is its write-ahead log, and after a crash the entries above the durable Applied are
// replayed. What is in memory is flushed in order, a few MiB at a time, and Witness makes everything before it durable.
//
// Readers never block on writers: every commit publishes a view (a Pebble snapshot with the Applied and the control state
// that belong to it), and a read works on the one view it found. A view is published after the observer has been told, so
// nobody can read a change that the feed has not heard of.
//
// On disk, dir holds LOCK, the directory of one generation (state-000001, a Pebble database) and a marker file that names
// it. Replace adds the next generation and moves the marker; whatever the marker does not name is left over from a crash.
package state

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

var (
	// ErrTrimmed says that the change index no longer reaches back to the revision asked for.
	ErrTrimmed = errors.New("the change index does not reach back that far")
	// ErrReplaced says that the state was replaced while a long read (EachBlob, Cut) was running on the old one, or closed.
	ErrReplaced = errors.New("the state was replaced or closed during the read")
	// ErrClosed says that the state is closed.
	ErrClosed = errors.New("the state is closed")
	// ErrDamaged says that a file does not hold what was written to it. The state has to be copied from another voter.
	ErrDamaged = errors.New("the state is damaged")
)

// Options of Open.
type Options struct {
	Logger     *slog.Logger // nil = discard
	CacheBytes int64        // block cache; 0 = 32 MiB. Memtables come on top: usually 16 MiB, at most 32 MiB
	FS         vfs.FS       // nil = the operating system's
	// Damaged is told when a damaged file is found, in whatever work; the error wraps ErrDamaged. It may be called often,
	// must not block and must not call the state. nil = nobody is told.
	Damaged func(error)
	// Failed is told when files cannot be written, for any reason but a full disk: the process should end. The same rules.
	Failed func(error)
	// Full is told, again and again, while a write waits for space on the disk. The same rules.
	Full func()
}

// Applied is where the state stands. It is one value, so that readers see a consistent set.
type Applied struct {
	Index, Term uint64
	Revision    kv.Revision
	MeshTime    int64        // unix milliseconds
	Epoch       kv.Epoch     // zero before KindInit
	Cluster     kv.ClusterID // zero before KindInit
}

// State is the state machine. Apply, Observe and Replace belong to one goroutine, the FSM's; everything else may be called
// from any.
type State struct {
	dir      string
	fs       *patientFS
	log      *slog.Logger
	troubles troubles
	cache    *pebble.Cache
	lock     *pebble.Lock
	stopping chan struct{} // closed by GiveUp
	stop     sync.Once

	view    atomic.Pointer[view]
	index   waiters
	rev     waiters
	retired sync.WaitGroup // generations that wait for their last reader
	expiry  soonest

	// mu is the writer's token: Apply, Witness, Replace and Close take turns, and hold it while they write to disk, because
	// turns are its purpose. No reader takes it. It guards what follows.
	mu      sync.Mutex
	w       *writer // nil once closed
	observe func(Committed)
}

// Open opens the state in dir, or creates it. It refuses a directory that another process has open, and a schema that this
// build does not know. The error for a damaged one wraps ErrDamaged.
func Open(dir string, opts Options) (_ *State, err error) {
	s := &State{dir: dir, log: opts.Logger, stopping: make(chan struct{})}
	s.troubles = troubles{damaged: opts.Damaged, failed: opts.Failed, full: opts.Full}.orNothing()
	if opts.FS == nil {
		opts.FS = vfs.Default
	}
	s.fs = newPatientFS(opts.FS, s.troubles.full)
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := makeDir(s.fs, dir); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if s.lock, err = pebble.LockDirectory(dir, s.fs); err != nil {
		return nil, fmt.Errorf("open state in %s: another process has it open: %w", dir, err)
	}
	cacheBytes := opts.CacheBytes
	if cacheBytes <= 0 {
		cacheBytes = defaultCacheBytes
	}
	s.cache = pebble.NewCache(cacheBytes + memTableCache)
	w, err := s.openCurrent()
	if err != nil {
		s.cache.Unref()
		return nil, errors.Join(fmt.Errorf("open state in %s: %w", dir, err), s.lock.Close())
	}
	s.w = w
	s.publish(w)
	s.fs.patient.Store(true) // a start with a full disk fails at once
	return s, nil
}

// GiveUp ends a Witness or a Checkpoint that waits for the disk. Close comes next.
func (s *State) GiveUp() { s.stop.Do(func() { close(s.stopping) }) }

// Close waits for the readers in flight, makes what was applied durable if the disk takes it, and closes the database.
func (s *State) Close() error {
	s.GiveUp()
	s.mu.Lock()
	w := s.w
	s.w = nil
	s.mu.Unlock()
	if w == nil {
		return ErrClosed
	}
	if w.failed == nil && w.applied != w.flushed {
		flushed, err := w.gen.db.AsyncFlush()
		if err == nil {
			select {
			case <-flushed:
			case <-time.After(closeFlush): // the log has it
			}
		}
	}
	s.fs.giveUp()
	close(w.gen.gone)
	last := s.view.Load()
	s.view.Store(&view{applied: last.applied, allowed: last.allowed, control: last.control, closed: true})
	last.release()
	s.index.close()
	s.rev.close()
	s.retired.Wait()
	err := w.gen.close()
	s.cache.Unref()
	return errors.Join(err, s.lock.Close())
}

// closeFlush bounds the last flush of Close, which only makes the next start faster.
const closeFlush = 5 * time.Second

// Applied is where the state stands, with everything before it visible to readers. It takes no lock.
func (s *State) Applied() Applied { return s.view.Load().applied }

// AllowedKinds is up to which kind commands may be proposed, as far as KindAllow has said; 0 = it has said nothing. It
// takes no lock.
func (s *State) AllowedKinds() command.Kind { return s.view.Load().allowed }

// Control is the control state as of Applied. It takes no lock; the slices in it are shared and must not be changed.
func (s *State) Control() kv.Control { return s.view.Load().control.Control }

// Committed is what one commit did, as the observer is told.
type Committed struct {
	Applied Applied
	// Records are dense within an epoch. A run of key changes within one log entry is one RecordKeys record, a deleted
	// namespace is a RecordNamespace of its own revision; creating and renaming a namespace, and KindInit, are RecordKeys
	// without hashes. Replace gives one RecordAll, when it moved the revision or the epoch. KindNewEpoch gives one of the new
	// epoch, which covers (0, its revision]: what stands before it in the list is of the old epoch.
	Records []kv.Record
	// Control is the whole control state, when this commit changed it; else nil. Its slices must not be changed.
	Control *kv.Control
	// Named are the blobs that keys have begun to name with this commit, Released those that none names any more, in no
	// order. After Replace both are empty and Replaced is set: any blob may have become named.
	Named, Released []Blob
	Replaced        bool
}

// Observe sets the function that is told of each commit, in order: after it is written, before readers can see it, before
// waiters are woken and before Apply (or Replace) returns. It must not block and must not call Apply, Witness, Replace or
// Close. It is set once, before the first Apply.
func (s *State) Observe(fn func(Committed)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observe = fn
}

// tell and publish make a commit known, in the order that Observe promises. The caller holds mu.
func (s *State) tell(c Committed) {
	if s.observe != nil {
		s.observe(c)
	}
}

func (s *State) publish(w *writer) {
	old := s.view.Swap(newView(w))
	if old != nil {
		old.release()
	}
	s.index.reached(w.applied.Index)
	s.rev.reached(uint64(w.applied.Revision))
}
