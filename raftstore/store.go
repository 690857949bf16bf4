// Package raftstore is the central store: the voters' agreement on one order of writes (hashicorp/raft) around the
// deterministic state machine of raftstore/state. It says who leads, takes writes on the leader, proves leadership for
// linearizable reads, and brings voters up to date. It is the only package that knows hashicorp/raft.
//
//	Propose → combiner → raft.Raft ⇄ transport → StreamLayer (other voters)
//	                        │  │
//	                        │  └→ fsm → state.State → Observe
//	                        └→ LogCache → watchedLog → Log (disk, sealed)
//	Confirm → leadership (rounds) → acks ← transport
//	compactor → raft.Snapshot → snapshotStore → Witness | Checkpoint | Replace
//
// DESIGN.md beside this file says why.
package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// Options of Open. Dir, NodeID, Stream and MeshNow are required.
type Options struct {
	Dir    string // the data directory of the central store; one process at a time
	NodeID string // of this node, the same for ever; also its Raft address
	Stream StreamLayer
	// Profile says how far apart the voters are; all of them should say the same.
	Profile Profile
	// MeshNow is the mesh time in unix milliseconds. The leader stamps it into what it proposes.
	MeshNow func() int64
	// Mono is the monotonic clock that Confirmation.At is read from; nil = time since Open.
	Mono func() time.Duration
	// Observe is told of every commit; see state.State.Observe. May be nil.
	Observe func(state.Committed)
	// Init makes the first command of a mesh. The first leader asks for it when the state is empty; nil = somebody else
	// proposes it. It must not block.
	Init func() (command.Op, error)
	// Fatal is called when this node can neither go on nor heal: a committed entry that it cannot apply, or a log that
	// cannot be written. It must end the process, and may be called more than once. nil = log it, and stand still.
	Fatal   func(error)
	Logger  *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // nil = none
	// LogStore opens the log; nil = DiskLog, which needs KEK.
	LogStore LogStore
	KEK      *seal.KEK
	// FS holds the state and the checkpoints; nil = the operating system's.
	FS vfs.FS
	// Space says how full the disk is; nil = asks the operating system, when FS is its.
	Space Space
	// CacheBytes is the state's block cache, 0 = its default.
	CacheBytes int64
	// Changes is the length of the change index in revisions: how far back a node that was away can be told exactly what
	// it missed. 0 = about 1 GiB of them.
	Changes kv.Revision

	// Hold is called before a checkpoint is cut for another member, and what it returns when the checkpoint is no longer on its
	// way: what lies beside the state and is named by it must be kept in between. nil = nothing does.
	Hold func() (release func())

	settings *settings // tests replace a profile's
}

// Store is one voter (or learner). All methods are safe for concurrent use.
type Store struct {
	opts Options
	set  settings

	state    *state.State
	lineages *lineages
	log      *watchedLog
	snaps    *snapshotStore
	fsm      *fsm
	streams  *streams
	trans    *transport
	acks     *acks
	progress *progress
	raft     *raft.Raft
	combiner *combiner
	cache    *raft.LogCache
	notices  *announcer
	metrics  *metrics
	dog      *watchdog
	space    *spaceGuard
	members  *memberInfos
	gate     *gate

	notify  chan bool // Raft's word on this node's leadership
	compact chan struct{}
	stalls  chan struct{} // holds one token when the watchdog has changed its mind
	damages chan *Damage
	leads   atomic.Pointer[leadership] // nil while this node does not lead

	cancel  context.CancelFunc
	tasks   sync.WaitGroup // the goroutines that end with cancel
	futures group          // calls into the library that cannot be cancelled
	dead    chan struct{}  // closed when nobody will be answered any more
	closing sync.Once
	leaving atomic.Bool // see Leaving

	mu      sync.Mutex    // guards changed
	changed chan struct{} // closed and replaced when the leader may have changed
}

// Open opens the directory and starts Raft. It refuses a directory whose parts do not fit together, with the remedy in
// the message.
func Open(ctx context.Context, opts Options) (_ *Store, err error) {
	if opts.Dir == "" || opts.NodeID == "" || opts.Stream == nil || opts.MeshNow == nil {
		return nil, errors.New("raftstore: Dir, NodeID, Stream and MeshNow are required")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := newStore(opts)
	if s.set, err = s.opts.Profile.settings(); err != nil {
		return nil, err
	}
	if opts.settings != nil {
		s.set = *opts.settings
	}
	if opts.Changes > 0 {
		s.set.changes = opts.Changes
	}
	var undo teardown
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run())
		}
	}()
	if err := s.openDisk(&undo); err != nil {
		return nil, err
	}
	if unfinished, err := s.unfinishedRecovery(); err != nil || unfinished != nil {
		return nil, errors.Join(err, errUnfinished(opts.Dir))
	}
	if err := s.openRaft(&undo); err != nil {
		return nil, err
	}
	return s, nil
}

// newStore is a Store with nothing open.
func newStore(opts Options) *Store {
	s := &Store{
		opts: withDefaults(opts), dead: make(chan struct{}), acks: newAcks(), progress: new(progress), changed: make(chan struct{}),
		// A backlog of ten lets Raft go on while the last leadership is still being undone.
		notify: make(chan bool, 10), compact: make(chan struct{}, 1), stalls: make(chan struct{}, 1),
		damages: make(chan *Damage, 1), members: newMemberInfos(), gate: newGate(),
	}
	s.space = newSpaceGuard(s.opts.Dir, s.opts.Space, s.opts.FS, s.opts.Logger.Warn)
	s.dog = newWatchdog(s.stallMayHaveChanged, s.fatal)
	return s
}

func withDefaults(o Options) Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.LogStore == nil {
		o.LogStore = DiskLog(o.KEK)
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Mono == nil {
		start := time.Now()
		o.Mono = func() time.Duration { return time.Since(start) }
	}
	if o.Hold == nil {
		o.Hold = func() func() { return func() {} }
	}
	if o.Observe == nil {
		o.Observe = func(state.Committed) {}
	}
	return o
}

// teardown undoes what succeeded, last in, first out.
type teardown []func() error

func (t *teardown) push(fn func() error) { *t = append(*t, fn) }

func (t *teardown) run() error {
	var err error
	for i := len(*t) - 1; i >= 0; i-- {
		err = errors.Join(err, (*t)[i]())
	}
	return err
}

func (s *Store) openRaft(undo *teardown) (err error) {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	undo.push(func() error { cancel(); s.tasks.Wait(); return nil })

	logger := &libraryLogger{log: s.opts.Logger, leaving: &s.leaving}
	s.lineages.superseded = func(err error) {
		s.streams.closeAll() // for good: this node votes for nobody and leads nobody any more
		s.fatal(err)
	}
	s.lineages.fresh = func() (bool, error) {
		has, err := s.Bootstrapped()
		return !has, err
	}
	s.streams = newStreams(ctx, s.opts.Stream, s.opts.NodeID, s.lineages, s.dog.stalled, s.opts.Logger)
	s.trans = &transport{
		acks: s.acks, mono: s.opts.Mono, sent: make(map[raft.ServerID]carried),
		snapshot: s.snaps.newestIndex, incoming: make(chan raft.RPC),
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Logger: logger, Stream: s.streams, Timeout: s.set.rpc,
			MaxPool: 3 + maxNotices, MaxRPCsInFlight: 1, MsgpackUseNewTimeFormat: true,
		}),
	}
	undo.push(s.closeTransport)

	if s.cache, err = raft.NewLogCache(logCacheEntries, s.log); err != nil {
		return err
	}
	conf := s.set.raftConfig(s.opts.NodeID)
	conf.Logger, conf.NotifyCh = logger, s.notify
	s.raft, err = raft.NewRaft(conf, s.fsm, s.cache, s.log, s.snaps, s.trans)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	undo.push(func() error { return s.raft.Shutdown().Error() })
	// The filter is called in line with the change and passes nothing on, so nothing can be dropped or block.
	s.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState: // the leader is forgotten before this node stops being it
			s.leaderMayHaveChanged()
		}
		return false
	}))
	if s.metrics, err = newMetrics(s.opts.Metrics, s); err != nil {
		return err
	}
	s.tasks.Go(func() { s.trans.runConsumer(ctx) })
	s.tasks.Go(func() { s.combiner.run(ctx) })
	s.tasks.Go(func() { s.notices.run(ctx) })
	s.tasks.Go(func() { s.watchLeadership(ctx) })
	s.tasks.Go(func() { s.runCompactor(ctx) })
	s.tasks.Go(func() { s.watchStalls(ctx) })
	s.tasks.Go(func() { s.watchSpace(ctx) })
	s.tasks.Go(func() { s.watchDamage(ctx.Done()) })
	return nil
}

func (s *Store) closeTransport() error {
	s.trans.CloseStreams()
	err := s.trans.Close() // also closes the StreamLayer
	s.streams.closeAll()
	return err
}

// applied returns what the state machine calls after entries.
func (s *Store) applied() func() {
	allowed := s.state.AllowedKinds() // the state machine's goroutine alone uses it
	return func() {
		if now := s.state.AllowedKinds(); now != allowed {
			allowed = now
			s.gate.changed()
		}
	}
}

// applyFailed ends the node. When it is damage that kept an entry from being applied, the next start repairs it.
func (s *Store) applyFailed(err error) {
	if errors.Is(err, state.ErrDamaged) {
		s.noticed(&Damage{Dir: s.opts.Dir, Err: err})
		return
	}
	s.fatal(err)
}

func (s *Store) fatal(err error) {
	s.opts.Logger.Error("this node cannot go on", "err", err)
	if s.opts.Fatal != nil {
		s.opts.Fatal(err)
	}
}

// Leaving says that the node is about to end. What Raft makes of connections that end with it is logged as debug from now on:
// to whoever stops a node that is no news.
func (s *Store) Leaving() { s.leaving.Store(true) }

// Close stops taking writes, lets those under way finish for a short while, and stops Raft. When the library does not
// stop before ctx ends, which happens only while its disk hangs, Close leaves its files open and says so: only the end of
// the process helps then. It does not hand leadership over; see TransferLeadership. A second Close does nothing.
func (s *Store) Close(ctx context.Context) error {
	var err error
	s.closing.Do(func() { err = s.close(ctx) })
	return err
}

func (s *Store) close(ctx context.Context) error {
	s.combiner.close()
	// Futures resolve by themselves within an election or so: with a result, or because the leader without a quorum steps
	// down. After Shutdown some never would.
	grace, cancel := context.WithTimeout(ctx, 2*(s.set.lease+s.set.election))
	defer cancel()
	idle := s.futures.close(grace)
	close(s.dead)
	s.cancel()

	down := s.raft.Shutdown()
	// Raft waits for the requests that are under way, and those to a dead voter last until their deadline.
	err := errors.Join(idle, s.closeTransport(), s.metrics.unregister())
	stopped := make(chan error, 1)
	go func() {
		err := down.Error()
		s.tasks.Wait()
		stopped <- err
	}()
	select {
	case serr := <-stopped:
		return errors.Join(err, serr, s.state.Close(), s.log.Close())
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("raft has not stopped, its disk may hang: %w", ctx.Err()))
	}
}

// State is the state machine, for reading. It is closed by Close.
func (s *Store) State() *state.State { return s.state }

func (s *Store) mono() time.Duration { return s.opts.Mono() }
func (s *Store) meshNow() int64      { return s.opts.MeshNow() }
