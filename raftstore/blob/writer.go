package blob

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// writeBack is after how many bytes the kernel is asked to begin writing them: so the fsync at the end finds little to do,
// and the log's fsyncs meanwhile do not wait for a large value's pages.
const writeBack = 4 << 20

// Writer writes one blob. Nothing is visible before Commit. Every Writer must be ended by Commit or Abort; Abort after
// either does nothing, so it can be deferred. For one goroutine.
type Writer struct {
	store *Store
	ref   Ref
	f     vfs.File // nil once the writer has ended
	tmp   string   // path of the unfinished file
	size  int64
	begun int64         // bytes that the kernel has been asked to write
	sum   xxhash.Digest // of the segment that is being written
	sums  []byte        // of those before it
	err   error         // why the writer ended, for all later calls

	// want is set on a writer of Resume: the checksums that the segments must have, and the size.
	want     []byte
	wantSize int64
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
	w := &Writer{store: s, ref: Ref{ns, id}, tmp: s.fs.PathJoin(s.dir, tmpName, rand.Text())}
	f, err := s.fs.Create(w.tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("create blob: %w", diskFull(err))
	}
	w.f = f
	w.sum.Reset()
	s.began(w.ref)
	return w, nil
}

func (s *Store) began(r Ref) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writers[r]++
}

func (s *Store) ended(r Ref, resumed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writers[r]--; s.writers[r] == 0 {
		delete(s.writers, r)
	}
	if resumed {
		delete(s.resumed, r)
	}
}

// Write appends to the blob. It does not change p, which others may read meanwhile. An error (a full disk wraps
// syscall.ENOSPC) ends the writer and removes what was written; but a writer of Resume that is given a segment that is not
// the one it wants ends with ErrDamaged, and keeps the segments before it.
func (w *Writer) Write(p []byte) (int, error) {
	if w.f == nil {
		return 0, w.err
	}
	done := 0
	for done < len(p) {
		room := SegmentBytes - w.size%SegmentBytes
		if w.want != nil {
			room = min(room, w.wantSize-w.size)
			if room == 0 {
				return done, w.fail("write blob", fmt.Errorf("%w: it is longer than %d bytes", ErrDamaged, w.wantSize))
			}
		}
		part := p[done:][:min(room, int64(len(p)-done))]
		if n, err := w.append(part); err != nil {
			return done + n, w.fail("write blob", err)
		}
		done += len(part)
		if w.size%SegmentBytes == 0 || w.want != nil && w.size == w.wantSize {
			if err := w.endSegment(); err != nil {
				return done, w.fail("write blob", err)
			}
		}
	}
	return done, nil
}

func (w *Writer) append(p []byte) (n int, err error) {
	_, _ = w.sum.Write(p) // never fails
	defer w.store.turn()()
	buf := w.store.buffers.Get().(*[]byte)
	defer w.store.buffers.Put(buf)
	p = (*buf)[:copy(*buf, p)] // a vfs.File may change what it is given; at most a segment
	if w.want != nil {
		n, err = w.f.WriteAt(p, w.size)
	} else {
		n, err = w.f.Write(p)
	}
	w.size += int64(n)
	if err != nil {
		return n, err
	}
	if w.size-w.begun >= writeBack {
		w.begun = w.size
		_, err = w.f.SyncTo(w.size)
	}
	return n, err
}

// endSegment notes the checksum of the segment that has just been written.
func (w *Writer) endSegment() error {
	sum := w.sum.Sum64()
	w.sum.Reset()
	segment := int64(len(w.sums) / sumBytes)
	if w.want != nil && sum != sumOf(w.want, segment) {
		return fmt.Errorf("%w: segment %d of %d came with another checksum than announced", ErrDamaged, segment, segments(w.wantSize))
	}
	w.sums = binary.BigEndian.AppendUint64(w.sums, sum)
	return nil
}

// Size is the number of bytes written, those that Resume found included.
func (w *Writer) Size() int64 { return w.size }

// Commit makes the blob visible, and when it returns nil the blob is on disk: fsync of the file, rename, fsync of the
// directory. ErrExists when another writer of the same id was first. After any other error the blob may be visible, but
// nobody has been promised it. The unfinished file is gone in every case.
func (w *Writer) Commit() error {
	if w.f == nil {
		return w.err
	}
	if w.want != nil && w.size != w.wantSize {
		return w.fail("commit blob", fmt.Errorf("%w: %d of %d bytes were written", ErrDamaged, w.size, w.wantSize))
	}
	if err := w.finish(); err != nil {
		return w.fail("write blob", err)
	}
	if !mutNoFsync {
		done := w.store.turn()
		err := w.f.Sync()
		done()
		if err != nil {
			return w.fail("fsync blob", err)
		}
	}
	f := w.f
	w.f, w.err = nil, errCommitted
	defer w.store.ended(w.ref, w.want != nil)
	if err := f.Close(); err != nil {
		return w.failed("close blob", err)
	}
	if err := w.store.publish(w.tmp, w.ref.Namespace, w.ref.ID); err != nil {
		return w.failed("commit blob", err)
	}
	return nil
}

// finish writes what stands behind the content.
func (w *Writer) finish() error {
	if segments(w.size)*sumBytes > int64(len(w.sums)) {
		if err := w.endSegment(); err != nil {
			return err
		}
	}
	tail := appendTail(nil, w.sums, w.size)
	if w.want == nil {
		_, err := w.f.Write(tail)
		return err
	}
	_, err := w.f.WriteAt(tail, w.size)
	return err
}

// Abort gives the write up and removes what was written. A writer of Resume leaves it for the next one.
func (w *Writer) Abort() error {
	if w.f == nil {
		return nil
	}
	w.err = errAborted
	return w.close(w.want != nil)
}

// fail ends the writer because of err.
func (w *Writer) fail(step string, err error) error {
	keep := w.want != nil && errors.Is(err, ErrDamaged)
	err = fmt.Errorf("%s: %w", step, diskFull(err))
	w.err = err
	return errors.Join(err, w.close(keep))
}

// failed is fail once the file has been closed.
func (w *Writer) failed(step string, err error) error {
	err = fmt.Errorf("%s: %w", step, diskFull(err))
	w.err = err
	return errors.Join(err, w.remove())
}

// close closes the unfinished file, and removes it unless it is to be kept.
func (w *Writer) close(keep bool) error {
	err := w.f.Close()
	w.f = nil
	defer w.store.ended(w.ref, w.want != nil)
	if keep {
		return err
	}
	return errors.Join(err, w.remove())
}

func (w *Writer) remove() error {
	err := w.store.fs.Remove(w.tmp)
	if errors.Is(err, fs.ErrNotExist) { // renamed, and what came after that failed
		return nil
	}
	return err
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
	if err := s.fs.Rename(tmp, s.path(ns, id)); err != nil {
		return err
	}
	if mutNoFsync {
		return nil
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
	if err := s.fs.MkdirAll(s.nsPath(ns), dirMode); err != nil {
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
