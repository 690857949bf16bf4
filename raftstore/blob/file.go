package blob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// File is a committed blob, open for reading: an io.ReaderAt and an io.ReadSeekCloser of its content. Every byte is
// verified before it is given out: a segment whose checksum does not hold is ErrDamaged, and none of it comes out. It goes
// on reading after the blob was deleted. ReadAt may be called by many goroutines at once, Read and Seek share one position.
type File struct {
	f       vfs.File
	size    int64
	sums    []byte
	buffers *sync.Pool

	pos  int64
	held int64   // the segment in buf, -1 = none
	buf  *[]byte // of buffers, nil until it is needed
}

// Open opens a committed blob. Of one that is not there the error wraps fs.ErrNotExist, of one whose file cannot be a
// blob's it wraps ErrDamaged.
func (s *Store) Open(ns kv.NamespaceID, id kv.BlobID) (*File, error) {
	f, err := s.fs.Open(s.path(ns, id))
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		var b *File
		if b, err = s.opened(f, info.Size()); err == nil {
			return b, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
}

func (s *Store) opened(f vfs.File, size int64) (*File, error) {
	sums, content, err := readTail(f, size)
	if err != nil {
		return nil, err
	}
	return &File{f: f, size: content, sums: sums, buffers: &s.buffers, held: -1}, nil
}

// Size is the number of bytes of the blob.
func (f *File) Size() int64 { return f.size }

// Sums are the checksums of the blob's segments, for Resume. They must not be changed.
func (f *File) Sums() []byte { return f.sums }

func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if f.pos >= f.size {
		return 0, io.EOF
	}
	segment := f.pos / SegmentBytes
	size := segmentSize(segment, f.size)
	if f.pos%SegmentBytes == 0 && int64(len(p)) >= size && segment != f.held {
		if err := f.load(segment, p[:size]); err != nil {
			return 0, err
		}
		f.pos += size
		return int(size), nil
	}
	if segment != f.held {
		if f.buf == nil {
			f.buf = f.buffers.Get().(*[]byte)
		}
		f.held = -1
		if err := f.load(segment, (*f.buf)[:size]); err != nil {
			return 0, err
		}
		f.held = segment
	}
	n := copy(p, (*f.buf)[f.pos%SegmentBytes:size])
	f.pos += int64(n)
	return n, nil
}

// ReadAt reads at an offset, as io.ReaderAt says.
func (f *File) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("read blob at %d: %w", offset, fs.ErrInvalid)
	}
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		if at >= f.size {
			return done, io.EOF
		}
		segment := at / SegmentBytes
		size := segmentSize(segment, f.size)
		if at%SegmentBytes == 0 && int64(len(p)-done) >= size {
			if err := f.load(segment, p[done:][:size]); err != nil {
				return done, err
			}
			done += int(size)
			continue
		}
		buf := f.buffers.Get().(*[]byte)
		err := f.load(segment, (*buf)[:size])
		if err == nil {
			done += copy(p[done:], (*buf)[at%SegmentBytes:size])
		}
		f.buffers.Put(buf)
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// load reads a whole segment and verifies it.
func (f *File) load(segment int64, p []byte) error {
	n, err := f.f.ReadAt(p, segment*SegmentBytes)
	if n < len(p) {
		if err == io.EOF {
			err = fmt.Errorf("%w: it ends in segment %d of %d", ErrDamaged, segment, segments(f.size))
		}
		return fmt.Errorf("read blob: %w", err)
	}
	if xxhash.Sum64(p) != sumOf(f.sums, segment) {
		return fmt.Errorf("read blob: %w: segment %d of %d", ErrDamaged, segment, segments(f.size))
	}
	return nil
}

// Verify reads all of the blob; ErrDamaged when it is not what was written.
func (f *File) Verify() error {
	buf := f.buffers.Get().(*[]byte)
	defer f.buffers.Put(buf)
	for segment := range segments(f.size) {
		if err := f.load(segment, (*buf)[:segmentSize(segment, f.size)]); err != nil {
			return err
		}
	}
	return nil
}

// Seek moves the position of Read, as io.Seeker says.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.size
	default:
		return f.pos, fmt.Errorf("seek in blob: whence %d: %w", whence, fs.ErrInvalid)
	}
	if offset < 0 {
		return f.pos, fmt.Errorf("seek in blob to %d: %w", offset, fs.ErrInvalid)
	}
	f.pos = offset
	return offset, nil
}

// Close closes the file. The blob stays.
func (f *File) Close() error {
	if f.buf != nil {
		f.buffers.Put(f.buf)
		f.buf, f.held = nil, -1
	}
	return f.f.Close()
}
