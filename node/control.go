package node

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// controlState is the control state at this node: the namespaces and their data keys. Readers load it without a lock.
// A node keeps a sealed copy on disk, so that one restarted in an outage still knows who may read what.
type controlState struct {
	kek  *seal.KEK
	file string
	log  *slog.Logger
	ask  func(ctx context.Context, least kv.Control) (kv.Control, error) // asks the nearest node that knows
	// joined is told the cluster id of every control state that is taken; its error refuses the state.
	joined func(kv.ClusterID) error

	cur     atomic.Pointer[controlIndex]
	mu      sync.Mutex    // serialises take; held while the small file is written, never while a reader waits
	changed chan struct{} // under chMu
	chMu    sync.Mutex    // guards changed

	missMu sync.Mutex                // guards misses
	misses map[string]*namespaceMiss // references that the mesh did not know a moment ago
}

type namespaceMiss struct {
	done chan struct{}
	at   time.Time // when the answer came
	err  error
}

// controlIndex is one immutable control state with its look-ups.
type controlIndex struct {
	control kv.Control
	byID    map[kv.NamespaceID]*namespaceEntry
	byTitle map[string]*namespaceEntry
}

type namespaceEntry struct {
	ns   kv.Namespace
	once sync.Once
	key  *seal.DataKey
	err  error
}

const (
	controlFile    = "control"
	controlContext = "control"
	// missFor is how long a namespace that the mesh did not know is not asked for again.
	missFor = time.Second
	// maxMisses bounds the memory of unknown names.
	maxMisses = 1024
)

func newControlState(kek *seal.KEK, dir string, log *slog.Logger) *controlState {
	s := &controlState{
		kek: kek, file: filepath.Join(dir, controlFile), log: log,
		changed: make(chan struct{}), misses: make(map[string]*namespaceMiss),
	}
	s.cur.Store(indexControl(kv.Control{}, nil))
	return s
}

// loadCopy loads the copy of an earlier run, if there is one.
func (s *controlState) loadCopy() error {
	sealed, err := os.ReadFile(s.file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	plain, err := s.kek.Open(controlContext, sealed)
	if err != nil {
		return err
	}
	c, err := readControl(plain)
	if err != nil {
		return err
	}
	s.cur.Store(indexControl(c, nil))
	return nil
}

// indexControl builds the look-ups; entries of old whose wrapped key is unchanged are kept, with their opened key.
func indexControl(c kv.Control, old *controlIndex) *controlIndex {
	x := &controlIndex{
		control: c,
		byID:    make(map[kv.NamespaceID]*namespaceEntry, len(c.Namespaces)),
		byTitle: make(map[string]*namespaceEntry, len(c.Namespaces)),
	}
	for _, ns := range c.Namespaces {
		e := &namespaceEntry{ns: ns}
		if old != nil {
			if o := old.byID[ns.ID]; o != nil && o.ns.Title == ns.Title && slices.Equal(o.ns.WrappedKey, ns.WrappedKey) {
				e = o
			}
		}
		x.byID[ns.ID] = e
		x.byTitle[ns.Title] = e
	}
	return x
}

// take adopts a control state if it is newer than the present one, and keeps a copy on disk.
func (s *controlState) take(c kv.Control) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	cur := s.cur.Load()
	if order := cmp.Or(c.Epoch.Compare(cur.control.Epoch), cmp.Compare(c.Revision, cur.control.Revision)); order <= 0 {
		return nil
	}
	if err := s.joined(c.Cluster); err != nil {
		return err
	}
	s.cur.Store(indexControl(c, cur))
	s.missMu.Lock()
	clear(s.misses)
	s.missMu.Unlock()
	s.chMu.Lock()
	close(s.changed)
	s.changed = make(chan struct{})
	s.chMu.Unlock()

	plain, err := appendControl(nil, c)
	if err != nil {
		return err
	}
	sealed, err := s.kek.Seal(controlContext, plain)
	if err == nil {
		err = writeFileSync(s.file, sealed)
	}
	if err != nil { // the node works without the copy, until it is restarted in an outage
		s.log.Error("the local copy of the control state could not be written", "file", s.file, "error", err)
	}
	return nil
}

// current is the control state, and the channel that is closed at its next change.
func (s *controlState) current() (kv.Control, <-chan struct{}) {
	s.chMu.Lock()
	defer s.chMu.Unlock()
	return s.cur.Load().control, s.changed
}

// lookup finds a namespace by id or title; an id wins.
func (x *controlIndex) lookup(ref string) *namespaceEntry {
	if id, err := kv.ParseNamespaceID(ref); err == nil {
		if e := x.byID[id]; e != nil {
			return e
		}
	}
	return x.byTitle[ref]
}

// namespace resolves a reference. One that is unknown here may have been made elsewhere a moment ago: the mesh is asked,
// once for all who wait, before "not found" is said.
func (s *controlState) namespace(ctx context.Context, ref string) (kv.Namespace, error) {
	if e := s.cur.Load().lookup(ref); e != nil {
		return e.ns, nil
	}
	notFound := kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace",
		"there is no namespace %q; create it with PUT /v1/namespaces/%s or kvmesh namespace create", ref, ref)
	s.missMu.Lock()
	m := s.misses[ref]
	if m != nil {
		select {
		case <-m.done:
			if m.err != nil || time.Since(m.at) > missFor {
				m = nil
			}
		default:
		}
	}
	ours := m == nil
	if ours {
		if len(s.misses) >= maxMisses {
			clear(s.misses)
		}
		m = &namespaceMiss{done: make(chan struct{})}
		s.misses[ref] = m
	}
	s.missMu.Unlock()
	if ours {
		// Not with ctx: when this client goes away, the others that wait for the answer are still there. ask has a limit of its own.
		c, err := s.ask(context.WithoutCancel(ctx), s.cur.Load().control)
		if err == nil {
			err = s.take(c)
		}
		m.err, m.at = err, time.Now()
		close(m.done)
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return kv.Namespace{}, kv.Errorf(kv.CodeDeadlineExceeded, "the request ended before the namespace %q was found", ref)
	}
	if e := s.cur.Load().lookup(ref); e != nil {
		return e.ns, nil
	}
	if m.err != nil {
		return kv.Namespace{}, &kv.Error{
			Code: kv.CodeUnavailable, Field: "namespace", RetryAfter: time.Second,
			Message: "the namespace is not known here and the mesh could not be asked; retry: " + m.err.Error(),
		}
	}
	return kv.Namespace{}, notFound
}

// dataKey returns the data key of a namespace.
func (s *controlState) dataKey(id kv.NamespaceID) (*seal.DataKey, error) {
	e := s.cur.Load().byID[id]
	if e == nil {
		return nil, kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace", "the namespace %s does not exist any more", id)
	}
	e.once.Do(func() { e.key, e.err = s.kek.Unwrap(e.ns.ID, e.ns.WrappedKey) })
	return e.key, e.err
}

// list returns all namespaces by title.
func (s *controlState) list() []kv.Namespace {
	out := slices.Clone(s.cur.Load().control.Namespaces)
	slices.SortFunc(out, func(a, b kv.Namespace) int { return cmp.Compare(a.Title, b.Title) })
	return out
}
