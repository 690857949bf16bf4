package blob

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, ns kv.NamespaceID, id kv.BlobID, content string) *Writer {
	t.Helper()
	w, err := s.Create(ns, id)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.WriteString(w, content); err != nil || n != len(content) {
		t.Fatalf("wrote %d bytes, error %v", n, err)
	}
	return w
}

func commit(t *testing.T, s *Store, ns kv.NamespaceID, id kv.BlobID, content string) {
	t.Helper()
	if err := create(t, s, ns, id, content).Commit(); err != nil {
		t.Fatal(err)
	}
}

func has(t *testing.T, s *Store, ns kv.NamespaceID, id kv.BlobID) bool {
	t.Helper()
	there, err := s.Has(ns, id)
	if err != nil {
		t.Fatal(err)
	}
	return there
}

func read(t *testing.T, s *Store, ns kv.NamespaceID, id kv.BlobID) string {
	t.Helper()
	f, err := s.Open(ns, id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || f.Size() != int64(len(b)) {
		t.Fatalf("read %d bytes of %d, error %v", len(b), f.Size(), err)
	}
	return string(b)
}

// walk returns what Walk sees, by id.
func walk(t *testing.T, s *Store) map[kv.BlobID]kv.NamespaceID {
	t.Helper()
	seen := map[kv.BlobID]kv.NamespaceID{}
	err := s.Walk(func(ns kv.NamespaceID, id kv.BlobID, _ int64, _ time.Time) error {
		seen[id] = ns
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// wantFiles checks how many files lie anywhere below dir, unfinished ones included.
func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != want {
		t.Errorf("%d files in the store, want %d: %v", len(files), want, files)
	}
}

func TestCommitMakesVisible(t *testing.T) {
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()

	w := create(t, s, ns, id, "content")
	if w.Size() != 7 {
		t.Errorf("Size() = %d, want 7", w.Size())
	}
	if has(t, s, ns, id) || len(walk(t, s)) != 0 {
		t.Error("an unfinished blob is visible")
	}
	if _, err := s.Open(ns, id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of an unfinished blob: error %v, want fs.ErrNotExist", err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if !has(t, s, ns, id) || walk(t, s)[id] != ns || read(t, s, ns, id) != "content" {
		t.Error("the committed blob is not there as it was written")
	}
	if has(t, s, kv.NewNamespaceID(), id) {
		t.Error("the blob is visible in another namespace")
	}
	if _, err := os.Stat(filepath.Join(dir, ns.String(), id.String())); err != nil {
		t.Errorf("not at the documented path: %v", err)
	}

	// The writer has ended.
	if err := w.Abort(); err != nil {
		t.Errorf("Abort after Commit: %v", err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after Commit succeeds")
	}
	if err := w.Commit(); err == nil {
		t.Error("a second Commit succeeds")
	}
	if got := read(t, open(t, dir), ns, id); got != "content" {
		t.Errorf("after reopening: %q", got)
	}
	wantFiles(t, dir, 1)
}

func TestAbortLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
	w := create(t, s, ns, id, "content")
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err == nil || has(t, s, ns, id) {
		t.Errorf("Commit after Abort: error %v, visible %t", err, has(t, s, ns, id))
	}
	wantFiles(t, dir, 0)
	commit(t, s, ns, id, "second attempt")
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "open")
	s, ns, id, unfinished := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID(), kv.NewBlobID()
	commit(t, s, ns, id, "kept")
	gone := kv.NewNamespaceID()
	commit(t, s, gone, kv.NewBlobID(), "deleted")
	for id, ns := range walk(t, s) {
		if ns == gone {
			if err := s.Delete(ns, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	create(t, s, ns, unfinished, "the process ends here")
	wantFiles(t, dir, 2)

	s = open(t, dir)
	wantFiles(t, dir, 1)
	if has(t, s, ns, unfinished) || read(t, s, ns, id) != "kept" {
		t.Error("the unfinished blob is there, or the committed one is not")
	}
	if _, err := os.Stat(s.nsPath(gone)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a namespace without blobs is still there: %v", err)
	}
	commit(t, s, ns, unfinished, "again")
	commit(t, s, gone, id, "again")
}

func TestCreateOfCommittedBlob(t *testing.T) {
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
	commit(t, s, ns, id, "first")
	for range 2 {
		if _, err := s.Create(ns, id); !errors.Is(err, ErrExists) {
			t.Errorf("error %v, want ErrExists", err)
		}
		s = open(t, dir)
	}
	commit(t, s, kv.NewNamespaceID(), id, "the same id in another namespace")
	if got := read(t, s, ns, id); got != "first" {
		t.Errorf("the blob is now %q", got)
	}
	wantFiles(t, dir, 2)
}

func TestConcurrentCreates(t *testing.T) {
	const writers = 8
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
	ws := make([]*Writer, writers)
	for i := range ws {
		ws[i] = create(t, s, ns, id, strings.Repeat(string(rune('a'+i)), 1000))
	}
	var (
		wg   sync.WaitGroup
		won  atomic.Int32
		wins atomic.Int32
	)
	for i, w := range ws {
		wg.Go(func() {
			switch err := w.Commit(); {
			case err == nil:
				wins.Add(1)
				won.Store('a' + int32(i))
			case !errors.Is(err, ErrExists):
				t.Errorf("error %v, want ErrExists", err)
			case !has(t, s, ns, id):
				t.Error("ErrExists, but the blob is not there")
			}
		})
		other := create(t, s, kv.NamespaceID{byte(i % 2)}, kv.NewBlobID(), "others meanwhile")
		wg.Go(func() {
			if err := other.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("%d writers of one blob succeeded, want 1", wins.Load())
	}
	if got := read(t, s, ns, id); got != strings.Repeat(string(won.Load()), 1000) {
		t.Errorf("the blob is not what the winner wrote: %.10q…", got)
	}
	wantFiles(t, dir, 1+writers)
	if len(s.gates.busy) != 0 {
		t.Errorf("%d gates were never left", len(s.gates.busy))
	}
}

// Between looking for a committed blob and renaming to its name, a second writer of it has to wait, and only that one.
func TestCommitsOfOneBlobTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ns, id := open(t, t.TempDir()), kv.NewNamespaceID(), kv.NewBlobID()
		w := create(t, s, ns, id, "content")
		leave := s.gates.enter(s.path(ns, id))
		done := make(chan error, 1)
		go func() { done <- w.Commit() }()
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("Commit returned %v while another one was renaming", err)
		default:
		}
		commit(t, s, ns, kv.NewBlobID(), "another blob is not held up")
		leave()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestReadersSurviveDelete(t *testing.T) {
	s, ns, id := open(t, t.TempDir()), kv.NewNamespaceID(), kv.NewBlobID()
	commit(t, s, ns, id, "0123456789")
	f, err := s.Open(ns, id)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := s.Delete(ns, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Delete(kv.NewNamespaceID(), id); err != nil {
		t.Errorf("delete in a namespace without blobs: %v", err)
	}
	if _, err := s.Open(ns, id); !errors.Is(err, fs.ErrNotExist) || has(t, s, ns, id) {
		t.Errorf("the deleted blob is there: %v", err)
	}

	buf := make([]byte, 4)
	if n, err := f.ReadAt(buf, 3); n != 4 || err != nil || string(buf) != "3456" {
		t.Errorf("ReadAt: %q, %v", buf[:n], err)
	}
	if n, err := f.ReadAt(buf, 8); n != 2 || err != io.EOF {
		t.Errorf("ReadAt over the end: %d, %v", n, err)
	}
	if at, err := f.Seek(-2, io.SeekEnd); at != 8 || err != nil {
		t.Errorf("Seek: %d, %v", at, err)
	}
	if rest, err := io.ReadAll(f); string(rest) != "89" || err != nil {
		t.Errorf("read %q, %v", rest, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	commit(t, s, ns, id, "written anew") // the id is free again
}

func TestWalk(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	start := time.Now()
	want := map[kv.BlobID]kv.NamespaceID{}
	spaces := []kv.NamespaceID{kv.NewNamespaceID(), kv.NewNamespaceID()}
	for i := range 266 {
		id, ns := kv.NewBlobID(), spaces[i%50/49]
		commit(t, s, ns, id, "xyz")
		want[id] = ns
	}
	create(t, s, spaces[0], kv.NewBlobID(), "unfinished")
	// What is not a blob is not walked.
	for _, name := range []string{"README", strings.Repeat("A", 32), strings.Repeat("g", 32), strings.Repeat("a", 31)} {
		for _, at := range []string{dir, s.nsPath(spaces[0])} {
			if err := os.WriteFile(filepath.Join(at, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}

	var seen int
	err := s.Walk(func(ns kv.NamespaceID, id kv.BlobID, size int64, modTime time.Time) error {
		if was, ok := want[id]; !ok || was != ns || size != 3 {
			t.Errorf("walked %s/%s of %d bytes", ns, id, size)
		}
		if modTime.Before(start.Add(-time.Minute)) || modTime.After(time.Now().Add(time.Minute)) {
			t.Errorf("modification time %v", modTime)
		}
		seen++
		return s.Delete(ns, id) // allowed while walking
	})
	if err != nil || seen != len(want) {
		t.Errorf("walked %d of %d blobs, error %v", seen, len(want), err)
	}
	if left := walk(t, s); len(left) != 0 {
		t.Errorf("%d blobs are left", len(left))
	}

	commit(t, s, spaces[0], kv.NewBlobID(), "")
	commit(t, s, spaces[0], kv.NewBlobID(), "")
	stop, calls := errors.New("stop"), 0
	err = s.Walk(func(kv.NamespaceID, kv.BlobID, int64, time.Time) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%d calls, error %v; want to stop at the first", calls, err)
	}
}

// disk is the real one, with a hand on what is created and on the fsyncs of directories.
type disk struct {
	vfs.FS
	create  func(vfs.File) (vfs.File, error)
	syncDir func(dir string) error
}

func openOn(t *testing.T, dir string) (*Store, *disk) {
	t.Helper()
	d := &disk{FS: vfs.Default}
	s, err := OpenFS(d, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, d
}

func (d *disk) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := d.FS.Create(name, c)
	if d.create == nil || err != nil {
		return f, err
	}
	return d.create(f)
}

func (d *disk) OpenDir(name string) (vfs.File, error) {
	f, err := d.FS.OpenDir(name)
	if d.syncDir == nil || err != nil {
		return f, err
	}
	return syncHook{f, func() error { return d.syncDir(name) }}, nil
}

type syncHook struct {
	vfs.File
	hook func() error
}

func (f syncHook) Sync() error { return errors.Join(f.hook(), f.File.Sync()) }

// brokenFile is a real unfinished file on a disk that fails in one way.
type brokenFile struct {
	vfs.File
	room      int // bytes that still fit; then writing goes to /dev/full
	full      *os.File
	syncErr   error
	closeErr  error
	wasClosed *bool
}

func (f *brokenFile) Write(p []byte) (int, error) {
	if f.full == nil || len(p) <= f.room {
		f.room -= len(p)
		return f.File.Write(p)
	}
	return f.full.Write(p)
}

func (f *brokenFile) Sync() error { return errors.Join(f.File.Sync(), f.syncErr) }

func (f *brokenFile) Close() error {
	*f.wasClosed = true
	return errors.Join(f.File.Close(), f.closeErr)
}

func TestBrokenDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cases := map[string]struct {
		file brokenFile
		want error
	}{
		"full at the first byte": {brokenFile{full: full}, syscall.ENOSPC},
		"full later":             {brokenFile{full: full, room: 3000}, syscall.ENOSPC},
		"full at the checksums":  {brokenFile{full: full, room: 5000}, syscall.ENOSPC},
		"full at fsync":          {brokenFile{syncErr: syscall.ENOSPC}, syscall.ENOSPC},
		"quota at fsync":         {brokenFile{syncErr: syscall.EDQUOT}, syscall.ENOSPC},
		"I/O error at fsync":     {brokenFile{syncErr: syscall.EIO}, syscall.EIO},
		"full at close":          {brokenFile{closeErr: syscall.ENOSPC}, syscall.ENOSPC},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			dir, closed := t.TempDir(), false
			ns, id := kv.NewNamespaceID(), kv.NewBlobID()
			s, d := openOn(t, dir)
			d.create = func(f vfs.File) (vfs.File, error) {
				c.file.File, c.file.wasClosed = f, &closed
				return &c.file, nil
			}
			w, err := s.Create(ns, id)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(w, io.MultiReader(bytes.NewReader(make([]byte, 1000)), bytes.NewReader(make([]byte, 4000))))
			if err == nil {
				err = w.Commit()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if !closed || has(t, s, ns, id) || s.Writing(ns, id) {
				t.Errorf("file closed: %t, blob visible: %t, still being written: %t", closed, has(t, s, ns, id), s.Writing(ns, id))
			}
			wantFiles(t, dir, 0)
			// The error stays: nothing written after it can be taken for a whole blob.
			if _, err := w.Write([]byte("x")); !errors.Is(err, c.want) {
				t.Errorf("next Write: error %v, want %v", err, c.want)
			}
			if err := w.Commit(); !errors.Is(err, c.want) {
				t.Errorf("next Commit: error %v, want %v", err, c.want)
			}
			if err := w.Abort(); err != nil {
				t.Errorf("Abort: %v", err)
			}
		})
	}

	s, d := openOn(t, t.TempDir())
	d.create = func(f vfs.File) (vfs.File, error) {
		return nil, errors.Join(&fs.PathError{Op: "open", Path: "x", Err: syscall.ENOSPC}, f.Close())
	}
	if _, err := s.Create(kv.NewNamespaceID(), kv.NewBlobID()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Create on a full disk: error %v", err)
	}
}

// Commit fsyncs before it renames: at the moment of the fsync the blob must not be visible.
func TestFsyncComesBeforeVisibility(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewBlobID()
	s, d := openOn(t, t.TempDir())
	synced := false
	d.create = func(f vfs.File) (vfs.File, error) {
		return syncHook{f, func() error {
			synced = true
			if has(t, s, ns, id) {
				t.Error("visible before its bytes are on disk")
			}
			return nil
		}}, nil
	}
	commit(t, s, ns, id, "content")
	if !synced {
		t.Error("Commit did not fsync the file")
	}
}

// A rename that was not followed by an fsync of its directory promises nothing: neither to the writer, nor to the next one
// that finds the file.
func TestPromisesWaitForTheDirectory(t *testing.T) {
	dir := t.TempDir()
	ns, id := kv.NewNamespaceID(), kv.NewBlobID()
	s, d := openOn(t, dir)
	var synced []string
	broken := true
	d.syncDir = func(path string) error {
		synced = append(synced, path)
		if broken && path == s.nsPath(ns) {
			return syscall.EIO
		}
		return nil
	}
	if err := create(t, s, ns, id, "content").Commit(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Commit: error %v, want EIO", err)
	}
	if want := []string{dir, s.nsPath(ns)}; !slices.Equal(synced, want) {
		t.Errorf("the first blob of a namespace synced %v, want %v", synced, want)
	}
	if _, err := s.Create(ns, id); !errors.Is(err, syscall.EIO) || errors.Is(err, ErrExists) {
		t.Errorf("Create while the disk is broken: error %v, want EIO", err)
	}
	broken, synced = false, nil
	if _, err := s.Create(ns, id); !errors.Is(err, ErrExists) || len(synced) != 1 {
		t.Errorf("Create: error %v after %d directory fsyncs, want ErrExists after 1", err, len(synced))
	}
	synced = nil
	commit(t, s, ns, kv.NewBlobID(), "content")
	if want := []string{s.nsPath(ns)}; !slices.Equal(synced, want) {
		t.Errorf("the next blob of the namespace synced %v, want %v", synced, want)
	}
}

func TestOpenNeedsADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("error %v, want one that names %s", err, path)
	}
}
