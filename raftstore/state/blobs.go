package state

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"kvmesh/raftstore/kv"
)

// Blob is a blob that a key names, with the size of the value in plaintext.
type Blob struct {
	Namespace kv.NamespaceID
	ID        kv.BlobID
	Size      int64
}

// Released is a blob that no key names any more. Its file may go after a grace for readers.
type Released struct {
	Namespace kv.NamespaceID
	Blob      kv.BlobID
	MeshTime  int64 // when it was released, unix milliseconds
}

// BlobSize says whether a key of the namespace names the blob, or will when the restore under way is done, and the plaintext
// size of its value. It reads past the published view: whoever was told by the observer that a commit names the blob finds it.
func (s *State) BlobSize(ns kv.NamespaceID, id kv.BlobID) (size int64, named bool, err error) {
	v, err := s.acquire()
	if err != nil {
		return 0, false, err
	}
	defer v.release()
	for _, b := range banks {
		named, err = get(v.gen.db, b.blobKey(nil, ns, id), func(val []byte) error {
			n, err := decodeNumber(val)
			size = int64(n)
			return err
		})
		if named || err != nil {
			break
		}
	}
	return size, named, err
}

// EachBlob calls fn with every blob that the state names, those staged by a restore among them, and the plaintext size of
// its value, until fn returns an error, which it returns. It works on the state as it was at the call, and ends with
// ErrReplaced when that is replaced meanwhile. fn must not call Replace or Close, which wait for it.
func (s *State) EachBlob(fn func(ns kv.NamespaceID, id kv.BlobID, size int64) error) error {
	v, err := s.acquire()
	if err != nil {
		return err
	}
	defer v.release()
	for _, b := range banks {
		if err := v.eachBlob(b, fn); err != nil {
			return err
		}
	}
	return nil
}

func (v *view) eachBlob(b *bank, fn func(ns kv.NamespaceID, id kv.BlobID, size int64) error) error {
	return scanSpace(v.snap, b.blob, func(k, val []byte) (bool, error) {
		if v.gen.replaced.Load() {
			return false, ErrReplaced
		}
		var ns kv.NamespaceID
		var id kv.BlobID
		if len(k) != spaceBytes+len(ns)+len(id) {
			return false, fmt.Errorf("%w: blob key of %d bytes", errCorrupt, len(k))
		}
		copy(ns[:], k[spaceBytes:])
		copy(id[:], k[spaceBytes+len(ns):])
		size, err := decodeNumber(val)
		if err != nil {
			return false, err
		}
		return true, fn(ns, id, int64(size))
	})
}

// EachReleased calls fn with every blob that is no longer named, in no meaningful order, until fn returns an error, which it
// returns. It reads past the published view, so that what ForgetReleased forgot is gone at once: who works the list off
// comes to its end on an idle state too. Otherwise it is like EachBlob.
func (s *State) EachReleased(fn func(Released) error) error {
	v, err := s.acquire()
	if err != nil {
		return err
	}
	defer v.release()
	return scanSpace(v.gen.db, spaceReleased, func(k, val []byte) (bool, error) {
		if v.gen.replaced.Load() {
			return false, ErrReplaced
		}
		var r Released
		if copy(r.Blob[:], k[spaceBytes:]) != len(r.Blob) {
			return false, fmt.Errorf("%w: blob key of %d bytes", errCorrupt, len(k))
		}
		var err error
		if r.Namespace, r.MeshTime, err = decodeReleased(val); err != nil {
			return false, err
		}
		return true, fn(r)
	})
}

// ForgetReleased drops blobs from the list of EachReleased, once their files are gone. The list is the node's own affair: it
// is not replicated, and not fsynced, because deleting a file twice does no harm. It takes no turn with Apply, which writes
// these records without reading them.
func (s *State) ForgetReleased(rs []Released) (err error) {
	v, err := s.acquire()
	if err != nil {
		return err
	}
	defer v.release()
	b := v.gen.db.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	for _, r := range rs {
		if err := b.Delete(releasedKey(nil, r.Blob), nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync)
}
