package blob

import (
	"errors"
	"fmt"
	"os"

	"kvmesh/raftstore/kv"
)

// File is a committed blob, open for reading: an io.ReaderAt and an io.ReadSeekCloser. It goes on reading after the blob
// was deleted. ReadAt may be called by many goroutines at once, Read and Seek share one position.
type File struct {
	f    *os.File
	size int64
}

// Open opens a committed blob. Of one that is not there the error wraps fs.ErrNotExist.
func (s *Store) Open(ns kv.NamespaceID, id kv.BlobID) (*File, error) {
	f, err := os.Open(s.path(ns, id))
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open blob: %w", err), f.Close())
	}
	return &File{f: f, size: info.Size()}, nil
}

// Size is the number of bytes of the blob.
func (f *File) Size() int64 { return f.size }

func (f *File) Read(p []byte) (int, error) { return f.f.Read(p) }

// ReadAt reads at an offset, as io.ReaderAt says.
func (f *File) ReadAt(p []byte, offset int64) (int, error) { return f.f.ReadAt(p, offset) }

// Seek moves the position of Read, as io.Seeker says.
func (f *File) Seek(offset int64, whence int) (int64, error) { return f.f.Seek(offset, whence) }

// Close closes the file. The blob stays.
func (f *File) Close() error { return f.f.Close() }
