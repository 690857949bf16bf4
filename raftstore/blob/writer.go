package blob

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"kvmesh/raftstore/kv"
)

// Writer writes one blob. Nothing is visible before Commit. Every Writer must be ended by Commit or Abort; Abort after
// either does nothing, so it can be deferred. For one goroutine.
type Writer struct {
	store *Store
	ns    kv.NamespaceID
	id    kv.BlobID
	f     file   // nil once the writer has ended
	tmp   string // path of the unfinished file
	size  int64
	err   error // why the writer ended, for all later calls
}

var (
	errCommitted = errors.New("the blob was committed")
	errAborted   = errors.New("the write of the blob was aborted")
)

// Create starts to write a blob. ErrExists when it is committed already. Several writers may be busy with one id, because
// a sender that lost its connection comes back before the old one is noticed: the first Commit wins, the others get
// ErrExists.
func (s *Store) Create(ns kv.NamespaceID, id kv.BlobID) (*Writer, error) {
	if err := s.checkAbsent(ns, id); err != nil {
		return nil, fmt.Errorf("create blob: %w", diskFull(err))
	}
	tmp := filepath.Join(s.dir, tmpName, rand.Text())
	f, err := s.create(tmp)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", diskFull(err))
	}
	return &Writer{store: s, ns: ns, id: id, f: f, tmp: tmp}, nil
}

// Write appends to the blob. An error (a full disk wraps syscall.ENOSPC) ends the writer and removes what was written.
func (w *Writer) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, w.err
	}
	n, err := w.f.Write(p)
	w.size += int64(n)
	if err != nil {
		return n, w.fail("write blob", err)
	}
	return n, nil
}

// Size is the number of bytes written.
func (w *Writer) Size() int64 { return w.size }

// Commit makes the blob visible, and when it returns nil the blob is on disk: fsync of the file, rename, fsync of the
// directory. ErrExists when another writer of the same id was first. After any other error the blob may be visible, but
// nobody has been promised it. The unfinished file is gone in every case.
func (w *Writer) Commit() error {
	if w.f == nil {
		return w.err
	}
	if err := w.f.Sync(); err != nil {
		return w.fail("fsync blob", err)
	}
	f := w.f
	w.f, w.err = nil, errCommitted
	if err := f.Close(); err != nil {
		return w.fail("close blob", err)
	}
	if err := w.store.publish(w.tmp, w.ns, w.id); err != nil {
		return w.fail("commit blob", err)
	}
	return nil
}

// Abort gives the write up and removes what was written.
func (w *Writer) Abort() error {
	if w.f == nil {
		return nil
	}
	return w.end(errAborted)
}

// fail ends the writer because of err.
func (w *Writer) fail(step string, err error) error {
	err = fmt.Errorf("%s: %w", step, diskFull(err))
	return errors.Join(err, w.end(err))
}

// end closes and removes the unfinished file; later calls return reason.
func (w *Writer) end(reason error) error {
	w.err = reason
	var closed error
	if w.f != nil {
		closed = w.f.Close()
		w.f = nil
	}
	removed := os.Remove(w.tmp)
	if errors.Is(removed, fs.ErrNotExist) { // renamed, and what came after that failed
		removed = nil
	}
	return errors.Join(closed, removed)
}

// publish renames a finished, fsynced file to its name. Only one goroutine at a time looks and renames for a name:
// otherwise two writers could both find nothing, and the second rename replace what the first writer was promised.
func (s *Store) publish(tmp string, ns kv.NamespaceID, id kv.BlobID) error {
	if err := s.ensureNamespace(ns); err != nil {
		return err
	}
	defer s.gates.enter(s.path(ns, id))()
	if err := s.checkAbsent(ns, id); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.path(ns, id)); err != nil {
		return err
	}
	return s.syncDir(s.nsPath(ns))
}

// checkAbsent returns ErrExists when the blob is committed. Its writer may not have come to fsync the directory yet, or
// have failed to, and ErrExists promises a blob that lasts; so the directory is fsynced here too.
func (s *Store) checkAbsent(ns kv.NamespaceID, id kv.BlobID) error {
	there, err := s.Has(ns, id)
	if err != nil || !there {
		return err
	}
	if err := s.syncDir(s.nsPath(ns)); err != nil {
		return err
	}
	return ErrExists
}

// ensureNamespace makes a namespace's directory, and sees that it is on disk before anything in it is promised. Several
// goroutines may do that at once; each has fsynced by itself when it returns.
func (s *Store) ensureNamespace(ns kv.NamespaceID) error {
	if s.knows(ns) {
		return nil
	}
	if err := os.Mkdir(s.nsPath(ns), dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := s.syncDir(s.dir); err != nil {
		return err
	}
	s.mu.Lock()
	s.namespaces[ns] = true
	s.mu.Unlock()
	return nil
}

func (s *Store) knows(ns kv.NamespaceID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[ns]
}
