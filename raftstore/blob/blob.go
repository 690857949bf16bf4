// Package blob keeps the large sealed values of a voter as files, one each, outside the Raft log and the state: the log
// and the state only carry their ids. It knows nothing of keys, revisions or encryption; which blobs are needed, missing
// or swept is decided by whoever holds the state.
//
//	<dir>/<namespace id, 32 hex>/<blob id, 32 hex>   a committed blob: complete, on disk, never changed
//	<dir>/tmp/<random>                               an unfinished write, removed by the next Open
//
// Names come from ids only, never from what a client sent. A blob is visible exactly when it is complete: its bytes are
// fsynced before the rename that makes it visible. Once Commit has returned nil, or anything has returned ErrExists, the
// blob survives a power failure; that is what a voter acknowledges.
package blob

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"kvmesh/raftstore/kv"
)

// ErrExists says that the blob is there already, whole and on disk. What was to be written is not needed.
var ErrExists = errors.New("the blob exists already")

const (
	tmpName = "tmp" // never a namespace: not 32 hex digits

	dirMode  = 0o700
	fileMode = 0o600

	// walkBatch is how many directory entries Walk holds at once.
	walkBatch = 256
)

// file is what a Writer needs of an unfinished file.
type file interface {
	io.Writer
	Sync() error
	Close() error
}

// Store is a directory of blobs. One process uses a directory at a time; its owner sees to that. Safe for concurrent use.
type Store struct {
	dir string
	// create makes an unfinished file, syncDir makes the names in a directory survive a power failure. They are the seams
	// at which a full or broken disk is injected.
	create  func(path string) (file, error)
	syncDir func(dir string) error
	gates   gates // by path: who may rename to it

	mu         sync.Mutex              // guards namespaces
	namespaces map[kv.NamespaceID]bool // whose directory is known to be on disk
}

// Open opens the store in dir, which is made if it is missing. It removes what unfinished writes have left and empty
// namespaces, and fsyncs the directories, so that whatever is visible afterwards is on disk even when the process was
// ended between a rename and its fsync.
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir, create: createFile, syncDir: syncDir, namespaces: make(map[kv.NamespaceID]bool)}
	s.gates.busy = make(map[string]chan struct{})
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("open blobs in %s: %w", dir, diskFull(err))
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := os.MkdirAll(s.dir, dirMode); err != nil {
		return err
	}
	if err := s.syncDir(filepath.Dir(s.dir)); err != nil {
		return err
	}
	tmp := filepath.Join(s.dir, tmpName)
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, dirMode); err != nil {
		return err
	}
	err := s.eachNamespace(func(ns kv.NamespaceID) error {
		path := s.nsPath(ns)
		// Not empty is the usual case, and the only one that keeps the directory. ENOTEMPTY and EEXIST both say so.
		if err := os.Remove(path); err == nil || !errors.Is(err, fs.ErrExist) {
			return err
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
	switch _, err := os.Lstat(s.path(ns, id)); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	default:
		return false, fmt.Errorf("look for blob: %w", err)
	}
}

// Delete removes a blob; removing a missing one is fine. Files that are open go on reading. The removal itself is not
// fsynced: after a power failure the blob may be back, and is then unnamed and swept again.
func (s *Store) Delete(ns kv.NamespaceID, id kv.BlobID) error {
	if err := os.Remove(s.path(ns, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete blob: %w", err)
	}
	return nil
}

// Walk calls fn for every committed blob, in no order, until fn returns an error, which Walk returns. modTime is when the
// blob's last byte was written, by this machine's clock. Blobs that are committed or deleted meanwhile may be seen or not;
// fn may delete the one it is given. Files that are not blobs are passed over.
func (s *Store) Walk(fn func(ns kv.NamespaceID, id kv.BlobID, size int64, modTime time.Time) error) error {
	return s.eachNamespace(func(ns kv.NamespaceID) error {
		return eachEntry(s.nsPath(ns), func(e fs.DirEntry) error {
			var id kv.BlobID
			if !parseName(id[:], e.Name()) || !e.Type().IsRegular() {
				return nil
			}
			info, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) { // deleted meanwhile
				return nil
			}
			if err != nil {
				return fmt.Errorf("walk blobs: %w", err)
			}
			return fn(ns, id, info.Size(), info.ModTime())
		})
	})
}

func (s *Store) eachNamespace(fn func(kv.NamespaceID) error) error {
	return eachEntry(s.dir, func(e fs.DirEntry) error {
		var ns kv.NamespaceID
		if !parseName(ns[:], e.Name()) || !e.IsDir() {
			return nil
		}
		return fn(ns)
	})
}

// eachEntry reads a directory piece by piece, so that a million blobs do not have to fit in memory.
func eachEntry(dir string, fn func(fs.DirEntry) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("read blob directory: %w", err)
	}
	defer d.Close() // nothing was written
	for {
		entries, err := d.ReadDir(walkBatch)
		for _, e := range entries {
			if err := fn(e); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read blob directory: %w", err)
		}
	}
}

// parseName reads what path wrote: lower-case hex of exactly the id's length.
func parseName(id []byte, name string) bool {
	if len(name) != hex.EncodedLen(len(id)) {
		return false
	}
	_, err := hex.Decode(id, []byte(name))
	return err == nil && hex.EncodeToString(id) == name
}

func (s *Store) nsPath(ns kv.NamespaceID) string { return filepath.Join(s.dir, ns.String()) }

func (s *Store) path(ns kv.NamespaceID, id kv.BlobID) string {
	return filepath.Join(s.dir, ns.String(), id.String())
}

func createFile(path string) (file, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
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
