package blob

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// ErrBusy says that somebody else is copying the blob.
var ErrBusy = errors.New("the blob is being copied already")

// Resume starts to copy another node's blob, or goes on with a copy that was interrupted, also by the end of the process:
// what has arrived lies in the partial directory. size and sums are what the other node says of its blob. The Writer
// returned stands behind the whole segments that are there already and have these checksums (Writer.Size), and takes
// exactly the rest. ErrExists when the blob is committed, ErrBusy while another writer of Resume is busy with it.
func (s *Store) Resume(ns kv.NamespaceID, id kv.BlobID, size int64, sums []byte) (*Writer, error) {
	if err := checkSums(sums, size); err != nil {
		return nil, fmt.Errorf("copy blob: %w", err)
	}
	ref := Ref{ns, id}
	if !s.claim(ref) {
		return nil, fmt.Errorf("copy blob: %w", ErrBusy)
	}
	w, err := s.resume(ref, size, sums)
	if err != nil {
		s.ended(ref, true)
		return nil, fmt.Errorf("copy blob: %w", diskFull(err))
	}
	return w, nil
}

// claim makes the caller the only one that copies the blob, until ended.
func (s *Store) claim(r Ref) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resumed[r] {
		return false
	}
	s.resumed[r] = true
	s.writers[r]++
	return true
}

func (s *Store) resume(ref Ref, size int64, sums []byte) (*Writer, error) {
	if err := s.checkAbsent(ref.Namespace, ref.ID); err != nil {
		return nil, err
	}
	path := s.partialPath(ref)
	// A file that is too long has another history than this one; its end would stay behind what is written.
	if info, err := s.fs.Stat(path); err == nil && info.Size() > size {
		if err := s.fs.Remove(path); err != nil {
			return nil, err
		}
	}
	f, err := s.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	w := &Writer{store: s, ref: ref, f: f, tmp: path, want: sums, wantSize: size}
	if w.want == nil { // of an empty blob
		w.want = []byte{}
	}
	w.sum.Reset()
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for segment := range segments(size) {
		p := (*buf)[:segmentSize(segment, size)]
		// What cannot be read is written again.
		if n, _ := f.ReadAt(p, w.size); n < len(p) || xxhash.Sum64(p) != sumOf(sums, segment) {
			break
		}
		w.size += int64(len(p))
	}
	w.sums = append(w.sums, sums[:segments(w.size)*sumBytes]...)
	return w, nil
}

func (s *Store) partialPath(r Ref) string { return s.fs.PathJoin(s.dir, partialName, r.String()) }

// Partials calls fn for every interrupted copy, until fn returns an error. fn may drop the one it is given.
func (s *Store) Partials(fn func(Ref) error) error {
	return s.each(s.sub(partialName), func(name string, _ vfs.FileInfo) error {
		if r, ok := parseRef(name); ok {
			return fn(r)
		}
		return nil
	})
}

// DropPartial removes what is left of an interrupted copy, unless somebody is going on with it.
func (s *Store) DropPartial(r Ref) error {
	if !s.claim(r) {
		return nil
	}
	defer s.ended(r, true)
	if err := s.fs.Remove(s.partialPath(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("drop a partial blob: %w", err)
	}
	return nil
}
