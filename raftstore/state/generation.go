package state

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

const (
	// schemaVersion is that of the layout as a whole. Open refuses any other.
	schemaVersion = 1

	markerName       = "state"
	generationPrefix = "state-"
	firstGeneration  = generationPrefix + "000001"
)

// generation is one open database. Its directory is named by the marker while it is the state.
type generation struct {
	name string
	db   *pebble.DB
	// views counts the views that read it, and its owner as one. idle is closed when they are gone.
	views atomic.Int64
	idle  chan struct{}
	// replaced tells long reads to stop.
	replaced atomic.Bool
	// gone is closed when the generation is replaced or the state closed.
	gone chan struct{}
	// failed holds the first error of closing a snapshot, for close to return.
	failed atomic.Pointer[error]
}

func (g *generation) done() {
	if g.views.Add(-1) == 0 {
		close(g.idle)
	}
}

// close gives up the owner's reference, waits for the readers in flight and closes the database. It is called once.
func (g *generation) close() error {
	g.done()
	<-g.idle
	err := g.db.Close()
	if failed := g.failed.Load(); failed != nil {
		err = errors.Join(*failed, err)
	}
	return err
}

// openCurrent opens the generation that the marker names, creates the first one in a new directory, and removes those that
// a crash left over.
func (s *State) openCurrent() (_ *writer, err error) {
	marker, name, err := atomicfs.LocateMarker(s.fs, s.dir, markerName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, marker.Close()) }()

	fresh := name == ""
	if fresh {
		name = firstGeneration
	}
	w, err := s.openGeneration(name, fresh)
	if err != nil {
		return nil, err
	}
	if fresh {
		// Without a marker nothing was ever applied here, unless the marker was lost.
		if w.applied.Index != 0 {
			err = fmt.Errorf("%s has applied the log up to %d but the marker file is missing: restore the directory as a whole, or empty it so that the state is copied from another voter", name, w.applied.Index)
		} else {
			err = marker.Move(name)
		}
	}
	if err == nil {
		err = marker.RemoveObsolete()
	}
	if err == nil {
		err = s.removeLeftovers(name)
	}
	if err != nil {
		return nil, errors.Join(err, w.gen.close())
	}
	return w, nil
}

func (s *State) removeLeftovers(keep string) error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, generationPrefix) || name == keep {
			continue
		}
		s.log.Info("state: removing a generation that is not the state", "name", name)
		if err := s.fs.RemoveAll(s.fs.PathJoin(s.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// openGeneration opens one database and loads what the writer keeps in memory.
func (s *State) openGeneration(name string, create bool) (*writer, error) {
	dir := s.fs.PathJoin(s.dir, name)
	o := pebbleOptions(s.fs, s.cache, s.log, s.troubles)
	o.ErrorIfNotExists = !create
	db, err := openPebble(dir, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	g := &generation{name: name, db: db, idle: make(chan struct{}), gone: make(chan struct{})}
	g.views.Store(1)
	if create {
		err = writeSchema(db)
	}
	var w *writer
	if err == nil {
		w, err = loadWriter(g)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), g.close())
	}
	return w, nil
}

// writeSchema stamps an empty database.
func writeSchema(db *pebble.DB) error {
	empty := true
	err := scan(db, nil, nil, func(_, _ []byte) (bool, error) {
		empty = false
		return false, nil
	})
	if err != nil || !empty {
		return err
	}
	if err := db.Set([]byte(keySchema), appendNumber(nil, schemaVersion), pebble.NoSync); err != nil {
		return err
	}
	return db.Flush()
}

func checkSchema(r reader) error {
	var schema uint64
	found, err := get(r, []byte(keySchema), func(val []byte) (err error) {
		schema, err = decodeNumber(val)
		return err
	})
	switch {
	case err != nil:
		return err
	case !found:
		return fmt.Errorf("%w: it holds no schema version", ErrDamaged) // every state has had one since it was made
	case schema != schemaVersion:
		return fmt.Errorf("it has schema version %d and this build knows %d: start the kvmesh version that wrote it, or empty the directory so that the state is copied from another voter", schema, schemaVersion)
	}
	return nil
}

func readApplied(r reader) (a Applied, err error) {
	_, err = get(r, []byte(keyApplied), func(val []byte) (err error) {
		a, err = decodeApplied(val)
		return err
	})
	return a, err
}

// writer is what the writing side keeps in memory: a copy of small records, and the present state of the keys that were
// touched lately. After an error it is out of step with the database, and failed stays set.
type writer struct {
	gen     *generation
	bank    *bank // the live one
	applied Applied
	spaces  map[kv.NamespaceID]*namespace // live ones
	titles  map[string]kv.NamespaceID
	slots   map[slotKey]*slot
	seq     uint64 // counts operations, to tell earlier from later
	control *control
	restore restoring
	staged  staging // in the other bank, while a restore is under way
	failed  error
	flushed Applied // durable for certain
	allowed command.Kind
}

func loadWriter(g *generation) (*writer, error) {
	w := &writer{gen: g, slots: make(map[slotKey]*slot)}
	if err := checkSchema(g.db); err != nil {
		return nil, err
	}
	var err error
	if w.applied, err = readApplied(g.db); err != nil {
		return nil, err
	}
	if w.restore, err = readRestore(g.db); err != nil {
		return nil, err
	}
	w.bank = banks[w.restore.live]
	if w.spaces, w.titles, err = loadNamespaces(g.db, w.bank); err != nil {
		return nil, err
	}
	if w.restore.phase == RestoreStaging {
		if w.staged.spaces, w.staged.titles, err = loadNamespaces(g.db, w.bank.other()); err != nil {
			return nil, err
		}
	}
	if err := w.loadAllowed(); err != nil {
		return nil, err
	}
	var rev uint64
	if _, err := get(g.db, []byte(keyControlRevision), func(val []byte) (err error) {
		rev, err = decodeNumber(val)
		return err
	}); err != nil {
		return nil, err
	}
	w.setControl(kv.Revision(rev))
	return w, nil
}

// loadNamespaces reads the living namespaces of a bank.
func loadNamespaces(r reader, b *bank) (spaces map[kv.NamespaceID]*namespace, titles map[string]kv.NamespaceID, err error) {
	spaces, titles = make(map[kv.NamespaceID]*namespace), make(map[string]kv.NamespaceID)
	err = scanSpace(r, b.namespace, func(key, val []byte) (bool, error) {
		n, err := decodeNamespace(val)
		if err != nil || n.deleted {
			return err == nil, err
		}
		var id kv.NamespaceID
		copy(id[:], key[spaceBytes:])
		_, err = get(r, nsKey(nil, b.wrappedKey, id), func(val []byte) error {
			if len(val) == 0 || val[0] != recordVersion {
				return fmt.Errorf("%w: wrapped key of namespace %s", errCorrupt, id)
			}
			n.wrapped = append([]byte(nil), val[1:]...)
			return nil
		})
		spaces[id], titles[n.title] = n, id
		return err == nil, err
	})
	return spaces, titles, err
}

// loadAllowed reads up to which kind commands may be proposed, and refuses a state of a mesh that uses unknown ones.
func (w *writer) loadAllowed() error {
	var kind uint64
	_, err := get(w.gen.db, []byte(keyAllowed), func(val []byte) (err error) {
		kind, err = decodeNumber(val)
		return err
	})
	if err == nil && kind > uint64(command.Highest) {
		err = fmt.Errorf("%w: the mesh uses kinds up to %d and this build knows them up to %d: start a newer kvmesh", command.ErrUnknown, kind, command.Highest)
	}
	w.allowed = command.Kind(kind)
	return err
}

// setControl makes the immutable control state from the namespaces as they are, ordered by title.
func (w *writer) setControl(rev kv.Revision) {
	c := &control{
		Control: kv.Control{
			Cluster: w.applied.Cluster, Epoch: w.applied.Epoch, Revision: rev,
			Namespaces: make([]kv.Namespace, 0, len(w.spaces)),
		},
		live:   make(map[kv.NamespaceID]struct{}, len(w.spaces)),
		hasher: feed.NewHasher(w.applied.Epoch),
	}
	for id, n := range w.spaces {
		c.live[id] = struct{}{}
		c.Namespaces = append(c.Namespaces, kv.Namespace{ID: id, Title: n.title, WrappedKey: n.wrapped, Created: n.created})
	}
	sortByTitle(c.Namespaces)
	w.control = c
}
