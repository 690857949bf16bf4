package state

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// diskRetry is the pause between two attempts of a write that met a full disk.
const diskRetry = 250 * time.Millisecond

// patientFS lets writes that meet a full disk wait until there is space again. Pebble would end the process when its
// manifest cannot be written, and try flushes and compactions again without a pause. While they wait, readers go on; Apply
// goes on too until the memtables are full, and then waits for the flush.
//
// A failed fsync is not tried again: what it did not write is lost. Pebble throws the file away and begins a new one, for
// which Create makes it wait.
type patientFS struct {
	vfs.FS
	full    func() // told of every attempt that met a full disk; must not block
	patient atomic.Bool
	closing chan struct{}
	once    sync.Once
	synced  atomic.Int64 // unix nanoseconds of the last fsync that met a full disk
}

func newPatientFS(fs vfs.FS, full func()) *patientFS {
	return &patientFS{FS: fs, full: full, closing: make(chan struct{})}
}

// giveUp lets every write that waits fail, for Close.
func (p *patientFS) giveUp() { p.once.Do(func() { close(p.closing) }) }

// isFull says whether an error is about a full disk or a used-up quota.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// try calls op until it meets no full disk.
func (p *patientFS) try(op func() error) error {
	for {
		err := op()
		if !isFull(err) || !p.patient.Load() {
			return err
		}
		p.full()
		select {
		case <-time.After(diskRetry):
		case <-p.closing:
			return err
		}
	}
}

// Unwrap is for vfs.Root.
func (p *patientFS) Unwrap() vfs.FS { return p.FS }

func (p *patientFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &patientFile{File: f, fs: p}, nil
}

func (p *patientFS) Create(name string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	if wait := time.Until(time.Unix(0, p.synced.Load()).Add(diskRetry)); wait > 0 {
		select {
		case <-time.After(wait):
		case <-p.closing:
		}
	}
	err = p.try(func() error { f, err = p.FS.Create(name, category); return err })
	return p.wrap(f, err)
}

func (p *patientFS) ReuseForWrite(oldname, newname string, category vfs.DiskWriteCategory) (f vfs.File, err error) {
	err = p.try(func() error { f, err = p.FS.ReuseForWrite(oldname, newname, category); return err })
	return p.wrap(f, err)
}

func (p *patientFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (f vfs.File, err error) {
	err = p.try(func() error { f, err = p.FS.OpenReadWrite(name, category, opts...); return err })
	return p.wrap(f, err)
}

func (p *patientFS) OpenDir(name string) (vfs.File, error) {
	f, err := p.FS.OpenDir(name)
	return p.wrap(f, err)
}

func (p *patientFS) Link(oldname, newname string) error {
	return p.try(func() error { return p.FS.Link(oldname, newname) })
}

func (p *patientFS) Rename(oldname, newname string) error {
	return p.try(func() error { return p.FS.Rename(oldname, newname) })
}

func (p *patientFS) MkdirAll(dir string, perm os.FileMode) error {
	return p.try(func() error { return p.FS.MkdirAll(dir, perm) })
}

// patientFile is a file that is written.
type patientFile struct {
	vfs.File
	fs *patientFS
}

func (f *patientFile) Write(p []byte) (n int, err error) {
	err = f.fs.try(func() error {
		k, err := f.File.Write(p[n:])
		n += k
		return err
	})
	return n, err
}

func (f *patientFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.fs.try(func() error {
		k, err := f.File.WriteAt(p[n:], off+int64(n))
		n += k
		return err
	})
	return n, err
}

// Preallocate is a favour to the file system that a full one cannot take.
func (f *patientFile) Preallocate(offset, length int64) error {
	if err := f.File.Preallocate(offset, length); !isFull(err) {
		return err
	}
	return nil
}

func (f *patientFile) noted(err error) error {
	if isFull(err) && f.fs.patient.Load() {
		f.fs.full()
		f.fs.synced.Store(time.Now().UnixNano())
	}
	return err
}

func (f *patientFile) Sync() error     { return f.noted(f.File.Sync()) }
func (f *patientFile) SyncData() error { return f.noted(f.File.SyncData()) }

func (f *patientFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	return full, f.noted(err)
}
