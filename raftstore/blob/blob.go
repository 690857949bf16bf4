// Package blob keeps the large sealed values of a voter as files, one each, outside the Raft log and the state: the log
// and the state only carry their ids. It knows nothing of keys, revisions or encryption; which blobs are needed, missing
// or swept is decided by whoever holds the state (package blobkeep).
//
//	<dir>/<namespace id, 32 hex>/<blob id, 32 hex>   a committed blob: complete, on disk, never changed
//	<dir>/tmp/<random>                               an unfinished write, removed by the next Open
//	<dir>/partial/<namespace id>-<blob id>           an unfinished copy of another node's blob, which Resume goes on with
//	<dir>/damaged/<namespace id>-<blob id>-<random>  what was found damaged, and moved aside
//
// Names come from ids only, never from what a client sent. A blob is visible exactly when it is complete: its bytes are
// fsynced before the rename that makes it visible. Once Commit has returned nil, or anything has returned ErrExists, the
// blob survives a power failure; that is what a voter acknowledges. What is read is verified by checksums (format.go).
package blob

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// ErrExists says that the blob is there already, whole and on disk. What was to be written is not needed.
var ErrExists = errors.New("the blob exists already")

// Directories beside the namespaces'. None of them is 32 hex digits.
const (
	tmpName     = "tmp"
	partialName = "partial"
	damagedName = "damaged"
)

const dirMode = 0o700

// Ref names a blob.
type Ref struct {
	Namespace kv.NamespaceID
	ID        kv.BlobID
}

func (r Ref) String() string { return r.Namespace.String() + "-" + r.ID.String() }

// parseRef reads what String wrote.
func parseRef(name string) (r Ref, ok bool) {
	const n = 2 * len(r.Namespace)
	ok = len(name) == n+1+2*len(r.ID) && name[n] == '-' && parseName(r.Namespace[:], name[:n]) && parseName(r.ID[:], name[n+1:])
	return r, ok
}

// Store is a directory of blobs. One process uses a directory at a time; its owner sees to that. Safe for concurrent use.
type Store struct {
	fs      vfs.FS
	dir     string
	gates   gates     // by path: who may rename to it
	buffers sync.Pool // of *[]byte, SegmentBytes each
	// disk has room for one: who writes, or waits for what was written. A write to a file stops a thread and its processor
	// until the kernel takes the bytes, which is long when pages pile up; were many stopped at once, nothing would be left for
	// Raft's heartbeats.
	disk chan struct{}

	mu         sync.Mutex              // guards all below
	namespaces map[kv.NamespaceID]bool // whose directory is known to be on disk
	writers    map[Ref]int             // how many writers are busy with a blob
	resumed    map[Ref]bool            // those of them that write the blob's partial file
}

// Open opens the store in dir on the operating system's file system; see OpenFS.
func Open(dir string) (*Store, error) { return OpenFS(vfs.Default, dir) }

// OpenFS opens the store in dir, which is made if it is missing. It removes what unfinished writes have left and empty
// namespaces, and fsyncs the directories, so that whatever is visible afterwards is on disk even when the process was
// ended between a rename and its fsync.
func OpenFS(disk vfs.FS, dir string) (*Store, error) {
	s := &Store{
		fs: disk, dir: dir, namespaces: make(map[kv.NamespaceID]bool),
		writers: make(map[Ref]int), resumed: make(map[Ref]bool), disk: make(chan struct{}, 1),
	}
	s.gates.busy = make(map[string]chan struct{})
	s.buffers.New = func() any { b := make([]byte, SegmentBytes); return &b }
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open blobs in %s: %w", dir, diskFull(err))
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := s.fs.MkdirAll(s.dir, dirMode); err != nil {
		return err
	}
	if err := s.syncDir(s.fs.PathDir(s.dir)); err != nil {
		return err
	}
	if err := s.fs.RemoveAll(s.sub(tmpName)); err != nil {
		return err
	}
	for _, name := range []string{tmpName, partialName, damagedName} {
		if err := s.fs.MkdirAll(s.sub(name), dirMode); err != nil {
			return err
		}
	}
	err := s.eachNamespace(func(ns kv.NamespaceID) error {
		path := s.nsPath(ns)
		switch names, err := s.fs.List(path); {
		case err != nil:
			return err
		case len(names) == 0:
			return s.fs.Remove(path)
		}
		s.namespaces[ns] = true
		return s.syncDir(path)
	})
	if err != nil {
		return err
	}
	return s.syncDir(s.dir)
}

// Has reports whether the blob is visible. That is not yet the promise that it survives a power failure: see the package.
func (s *Store) Has(ns kv.NamespaceID, id kv.BlobID) (bool, error) {
	switch _, err := s.fs.Stat(s.path(ns, id)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for blob: %w", err)
	}
}

// Stat is the size of a visible blob, as its file's length says it. Of one that is not there the error wraps
// fs.ErrNotExist, and ErrDamaged when the file cannot be a blob's. It reads nothing, so other damage goes unnoticed.
func (s *Store) Stat(ns kv.NamespaceID, id kv.BlobID) (int64, error) {
	info, err := s.fs.Stat(s.path(ns, id))
	if err != nil {
		return 0, fmt.Errorf("look for blob: %w", err)
	}
	size, ok := contentSize(info.Size())
	if !ok || !info.Mode().IsRegular() {
		return 0, fmt.Errorf("look for blob: %w: a file of %d bytes", ErrDamaged, info.Size())
	}
	return size, nil
}

// Writing reports whether the blob is being written just now.
func (s *Store) Writing(ns kv.NamespaceID, id kv.BlobID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.writers[Ref{ns, id}] > 0
}

// Delete removes a blob; removing a missing one is fine. Files that are open go on reading. The removal itself is not
// fsynced: after a power failure the blob may be back, and is then unnamed and swept again.
func (s *Store) Delete(ns kv.NamespaceID, id kv.BlobID) error {
	if err := s.fs.Remove(s.path(ns, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// Walk calls fn for every committed blob, in no order, until fn returns an error, which Walk returns. modTime is when the
// blob's last byte was written, by this machine's clock. Blobs that are committed or deleted meanwhile may be seen or not;
// fn may delete the one it is given. Files that are not blobs are passed over. It holds the names of one namespace.
func (s *Store) Walk(fn func(ns kv.NamespaceID, id kv.BlobID, size int64, modTime time.Time) error) error {
	return s.eachNamespace(func(ns kv.NamespaceID) error {
		return s.each(s.nsPath(ns), func(name string, info vfs.FileInfo) error {
			var id kv.BlobID
			if !parseName(id[:], name) || !info.Mode().IsRegular() {
				return nil
			}
			size, _ := contentSize(info.Size()) // of a damaged one anything will do
			return fn(ns, id, size, info.ModTime())
		})
	})
}

func (s *Store) eachNamespace(fn func(kv.NamespaceID) error) error {
	return s.each(s.dir, func(name string, info vfs.FileInfo) error {
		var ns kv.NamespaceID
		if !parseName(ns[:], name) || !info.IsDir() {
			return nil
		}
		return fn(ns)
	})
}

// each calls fn for what is in a directory, until it returns an error.
func (s *Store) each(dir string, fn func(name string, info vfs.FileInfo) error) error {
	names, err := s.fs.List(dir)
	if err != nil {
		return fmt.Errorf("read blob directory: %w", err)
	}
	for _, name := range names {
		info, err := s.fs.Stat(s.fs.PathJoin(dir, name))
		if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
			continue
		}
		if err != nil {
			return fmt.Errorf("read blob directory: %w", err)
		}
		if err := fn(name, info); err != nil {
			return err
		}
	}
	return nil
}

// parseName reads what path wrote: lower-case hex of exactly the id's length.
func parseName(id []byte, name string) bool {
	if len(name) != hex.EncodedLen(len(id)) {
		return false
	}
	_, err := hex.Decode(id, []byte(name))
	return err == nil && hex.EncodeToString(id) == name
}

// turn waits for the writer's turn at the disk, and returns the function that ends it.
func (s *Store) turn() (done func()) {
	s.disk <- struct{}{}
	return func() { <-s.disk }
}

func (s *Store) sub(name string) string { return s.fs.PathJoin(s.dir, name) }

func (s *Store) nsPath(ns kv.NamespaceID) string { return s.sub(ns.String()) }

func (s *Store) path(ns kv.NamespaceID, id kv.BlobID) string {
	return s.fs.PathJoin(s.dir, ns.String(), id.String())
}

func (s *Store) syncDir(dir string) error {
	d, err := s.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// diskFull makes a used-up quota look like a full disk, which it is to everybody above.
func diskFull(err error) error {
	if errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", syscall.ENOSPC, err)
	}
	return err
}

// gates let one goroutine at a time work on a name. Unlike a mutex held across I/O they stop only those that want the same
// name.
type gates struct {
	mu   sync.Mutex               // guards busy
	busy map[string]chan struct{} // closed when the name is free again
}

// enter waits until nobody else is in, and returns the function that leaves.
func (g *gates) enter(name string) (leave func()) {
	for {
		g.mu.Lock()
		other, busy := g.busy[name]
		if !busy {
			mine := make(chan struct{})
			g.busy[name] = mine
			g.mu.Unlock()
			return func() {
				g.mu.Lock()
				delete(g.busy, name)
				g.mu.Unlock()
				close(mine)
			}
		}
		g.mu.Unlock()
		<-other
	}
}
