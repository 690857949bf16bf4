package state

import (
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"

	"kvmesh/raftstore/kv"
)

// Witness moves Applied's index and term up to those of a snapshot, because no-op and configuration entries never reach
// Apply, and flushes: everything applied before is durable after it. An index that is not above Applied.Index moves
// nothing. Apply may go on during the flush. With a full disk it waits for space, or until GiveUp.
func (s *State) Witness(index, term uint64) error {
	if err := s.moveTo(index, term); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	v, err := s.acquire()
	if err == nil {
		err = s.flush(v)
		v.release()
	}
	if err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	return nil
}

// flush makes durable what v shows.
func (s *State) flush(v *view) error {
	flushed, err := v.gen.db.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-flushed:
	case <-s.stopping:
		return ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w != nil && s.w.gen == v.gen && v.applied.Index > s.w.flushed.Index {
		s.w.flushed = v.applied
	}
	return nil
}

func (s *State) moveTo(index, term uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.w == nil:
		return ErrClosed
	case s.w.failed != nil:
		return fmt.Errorf("an earlier apply failed: %w", s.w.failed)
	case index <= s.w.applied.Index:
		return nil
	}
	a := s.w.applied
	a.Index, a.Term = index, term
	if err := s.w.gen.db.Set([]byte(keyApplied), appendApplied(nil, &a), pebble.NoSync); err != nil {
		s.w.failed = err
		return err
	}
	s.w.applied = a
	s.publish(s.w)
	return nil
}

// Checkpoint writes a durable copy of the state to dir and says what it holds: Applied at the call, or what Apply added
// meanwhile, which goes on. It may be one commit ahead of what readers see yet. dir must not exist, and must be on the
// same file system, because files are linked, not copied.
func (s *State) Checkpoint(dir string) (Applied, error) {
	v, err := s.acquire()
	if err != nil {
		return Applied{}, err
	}
	defer v.release()
	if err := s.flush(v); err != nil { // a checkpoint holds what is in files
		return Applied{}, fmt.Errorf("checkpoint: %w", err)
	}
	if err := v.gen.db.Checkpoint(dir); err != nil {
		return Applied{}, fmt.Errorf("checkpoint: %w", err)
	}
	// Only the copy knows at which commit it was taken.
	a, err := readCheckpoint(s.fs, dir, func(r reader) error { return nil })
	if err != nil {
		return Applied{}, errors.Join(fmt.Errorf("checkpoint: %w", err), s.fs.RemoveAll(dir))
	}
	return a, nil
}

// Inspect opens a checkpoint on the operating system's file system, read-only, and returns what it holds. It checks the
// schema version and reads every key and every value, and so the checksums of all that is in use. The error for a damaged
// one wraps ErrDamaged.
func Inspect(dir string) (Applied, error) { return InspectFS(vfs.Default, dir) }

// InspectFS is Inspect on another file system.
func InspectFS(fs vfs.FS, dir string) (a Applied, err error) {
	defer func() { err = asDamage(err) }()
	a, err = readCheckpoint(fs, dir, func(r reader) error {
		it, err := r.NewIter(nil)
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			if _, err := it.ValueAndErr(); err != nil { // reading is the check
				return errors.Join(err, it.Close())
			}
		}
		return errors.Join(it.Error(), it.Close())
	})
	if err != nil {
		return Applied{}, fmt.Errorf("inspect checkpoint %s: %w", dir, err)
	}
	return a, nil
}

// readCheckpoint opens a checkpoint without changing it, and calls check.
func readCheckpoint(fs vfs.FS, dir string, check func(reader) error) (a Applied, err error) {
	defer recovered(&err) // also of closing after the panic below
	cache := pebble.NewCache(inspectCacheBytes + memTableCache)
	defer cache.Unref()
	o := pebbleOptions(fs, cache, slog.New(slog.DiscardHandler), troubles{}.orNothing())
	o.ReadOnly = true
	o.ErrorIfNotExists = true
	db, err := openPebble(dir, o)
	if err != nil {
		return Applied{}, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := checkSchema(db); err != nil {
		return Applied{}, err
	}
	if a, err = readApplied(db); err != nil {
		return Applied{}, err
	}
	return a, check(db)
}

// Replace makes the checkpoint in dir the state; dir must be on the same file system, and is gone afterwards. Reads in
// flight finish on the old state, later ones see the new one, and the old one is deleted when its last reader has
// finished, which Replace waits for.
//
// It renames and never copies. The directory becomes the next generation; the move of the marker, one atomic rename, makes
// it the state. A crash before it leaves the old state and a directory that Open removes, a crash after it leaves the new
// state and the old directory, which Open removes. On an error before the move the old state stays and dir is lost.
func (s *State) Replace(dir string) error {
	s.mu.Lock()
	old, err := s.swap(dir)
	if err == nil {
		s.retired.Add(1)
		defer s.retired.Done()
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("replace state: %w", err)
	}
	if err := old.close(); err != nil {
		return fmt.Errorf("replace state: close the old one: %w", err)
	}
	if err := s.fs.RemoveAll(s.fs.PathJoin(s.dir, old.name)); err != nil {
		return fmt.Errorf("replace state: remove the old one: %w", err)
	}
	return nil
}

// swap does what Replace says up to the point where readers see the new state, and returns the old generation. The caller
// holds mu.
func (s *State) swap(dir string) (_ *generation, err error) {
	if s.w == nil {
		return nil, ErrClosed
	}
	if err := syncTree(s.fs, dir); err != nil {
		return nil, err
	}
	marker, current, err := atomicfs.LocateMarker(s.fs, s.dir, markerName)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, marker.Close()) }()
	name, err := nextGeneration(current)
	if err != nil {
		return nil, err
	}
	target := s.fs.PathJoin(s.dir, name)
	if err := s.fs.RemoveAll(target); err != nil {
		return nil, err
	}
	if err := s.fs.Rename(dir, target); err != nil {
		return nil, err
	}
	w, err := s.openGeneration(name, false)
	if err == nil {
		err = syncDir(s.fs, s.dir)
	}
	if err == nil {
		err = marker.Move(name)
	}
	if err != nil {
		if w != nil {
			err = errors.Join(err, w.gen.close())
		}
		return nil, errors.Join(err, s.fs.RemoveAll(target))
	}
	old := s.w
	s.w = w
	old.gen.replaced.Store(true)
	close(old.gen.gone)
	s.tell(replacement(old.applied, w))
	s.publish(w)
	s.expiry.added(0)
	return old.gen, nil
}

// replacement is what the observer is told of a replaced state: anything may have changed.
func replacement(old Applied, w *writer) Committed {
	c := Committed{Applied: w.applied, Control: &w.control.Control, Replaced: true}
	prev := old.Revision
	if old.Epoch != w.applied.Epoch {
		prev = 0
	}
	if prev < w.applied.Revision {
		c.Records = []kv.Record{{Epoch: w.applied.Epoch, Prev: prev, To: w.applied.Revision, Kind: kv.RecordAll}}
	}
	return c
}

func nextGeneration(current string) (string, error) {
	n, err := strconv.Atoi(strings.TrimPrefix(current, generationPrefix))
	if err != nil {
		return "", fmt.Errorf("the marker names %q, which is no generation", current)
	}
	return fmt.Sprintf("%s%06d", generationPrefix, n+1), nil
}

// syncTree makes a directory of files durable: its maker may have left that to us.
func syncTree(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := syncFile(fs, fs.PathJoin(dir, name)); err != nil {
			return err
		}
	}
	return syncDir(fs, dir)
}

func syncFile(fs vfs.FS, path string) error {
	f, err := fs.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeDir creates dir and its missing parents, and makes their names durable.
func makeDir(fs vfs.FS, dir string) error {
	parent := fs.PathDir(dir)
	if _, err := fs.Stat(parent); err != nil && parent != dir {
		if err := makeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(fs, parent)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
