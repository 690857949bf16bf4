package blob

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// Quarantine moves a blob's file aside, so that nobody is served from it and the blob can be written again. It is durable:
// after a power failure the damaged file is not back. Of a blob that is not there it does nothing.
func (s *Store) Quarantine(ns kv.NamespaceID, id kv.BlobID) error {
	from := s.path(ns, id)
	defer s.gates.enter(from)()
	to := s.fs.PathJoin(s.dir, damagedName, Ref{ns, id}.String()+"-"+rand.Text()[:8])
	if err := s.fs.Rename(from, to); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("move a damaged blob aside: %w", err)
	}
	if err := errors.Join(s.syncDir(s.sub(damagedName)), s.syncDir(s.nsPath(ns))); err != nil {
		return fmt.Errorf("move a damaged blob aside: %w", err)
	}
	return nil
}

// Damaged calls fn for every file that was moved aside, with when it was last written, until fn returns an error. name is
// for RemoveDamaged, which fn may call.
func (s *Store) Damaged(fn func(r Ref, name string, written time.Time) error) error {
	const refLen = 2*16 + 1 + 2*16
	return s.each(s.sub(damagedName), func(name string, info vfs.FileInfo) error {
		if len(name) < refLen {
			return nil
		}
		r, ok := parseRef(name[:refLen])
		if !ok {
			return nil
		}
		return fn(r, name, info.ModTime())
	})
}

// RemoveDamaged removes a file that was moved aside.
func (s *Store) RemoveDamaged(name string) error {
	if err := s.fs.Remove(s.fs.PathJoin(s.dir, damagedName, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a damaged blob: %w", err)
	}
	return nil
}
