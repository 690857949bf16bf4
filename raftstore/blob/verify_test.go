package blob

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/kv"
)

// sizes around every boundary of the format.
var sizes = []int{0, 1, 7, SegmentBytes - 1, SegmentBytes, SegmentBytes + 1, 2 * SegmentBytes, 3*SegmentBytes - 9, 5*SegmentBytes + 100}

func content(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b) // never fails
	return b
}

func TestSizes(t *testing.T) {
	for n := range int64(4 * SegmentBytes) {
		if got, ok := contentSize(fileSize(n)); !ok || got != n {
			t.Fatalf("a content of %d bytes makes a file of %d, which is taken for one of %d (%t)", n, fileSize(n), got, ok)
		}
	}
	for _, n := range []int64{-1, 0, 5, tailBytes - 1, tailBytes + 1, tailBytes + 8, tailBytes + SegmentBytes + 8 + 3, 1 << 62} {
		if got, ok := contentSize(n); ok {
			t.Errorf("a file of %d bytes is taken for a content of %d", n, got)
		}
	}
}

// Whatever way a blob is read, its bytes come out as they were written.
func TestReadsAreExact(t *testing.T) {
	s, ns := open(t, t.TempDir()), kv.NewNamespaceID()
	for _, n := range sizes {
		id, want := kv.NewBlobID(), content(n)
		w := create(t, s, ns, id, "")
		if _, err := io.Copy(struct{ io.Writer }{w}, iotest.HalfReader(bytes.NewReader(want))); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if size, err := s.Stat(ns, id); err != nil || size != int64(n) {
			t.Errorf("%d bytes: Stat says %d, %v", n, size, err)
		}
		f, err := s.Open(ns, id)
		if err != nil {
			t.Fatal(err)
		}
		if n < 100 { // it reads single bytes, many times over
			if err := iotest.TestReader(f, want); err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
		for range 200 {
			from := rand.IntN(n + 10)
			p := make([]byte, rand.IntN(3*SegmentBytes))
			rest := want[min(from, n):]
			if got, err := f.ReadAt(p, int64(from)); got != min(len(p), len(rest)) || (err == io.EOF) != (got < len(p)) || !bytes.Equal(p[:got], rest[:got]) {
				t.Fatalf("%d bytes: ReadAt(%d bytes, %d) gave %d, %v", n, len(p), from, got, err)
			}
			if _, err := f.Seek(int64(from), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(io.LimitReader(f, int64(len(p)))) // in pieces that know nothing of segments
			if err != nil || !bytes.Equal(got, rest[:min(len(p), len(rest))]) {
				t.Fatalf("%d bytes: %d bytes from %d on, %v", n, len(got), from, err)
			}
		}
		if err := errors.Join(f.Verify(), f.Close()); err != nil {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// A bit that has flipped anywhere in a blob's file, or an end that is gone, is found before a byte of the damaged segment
// comes out, and no other byte is ever given out than was written.
func TestDamageIsFound(t *testing.T) {
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
	want := content(2*SegmentBytes + 5000)
	commit(t, s, ns, id, string(want))
	path := s.path(ns, id)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, file []byte) {
		t.Helper()
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := s.Open(ns, id)
		if err == nil {
			var got []byte
			got, err = io.ReadAll(f)
			if !bytes.HasPrefix(want, got) {
				t.Fatalf("%s: wrong bytes came out", what)
			}
			at := make([]byte, len(want))
			n, aerr := f.ReadAt(at, 0)
			if !errors.Is(aerr, ErrDamaged) || !bytes.Equal(at[:n], want[:n]) {
				t.Fatalf("%s: ReadAt gave %d bytes, %v", what, n, aerr)
			}
			if verr := f.Verify(); !errors.Is(verr, ErrDamaged) {
				t.Fatalf("%s: Verify: %v", what, verr)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v, want ErrDamaged", what, err)
		}
	}
	places := []int{0, 1, SegmentBytes - 1, SegmentBytes, len(want) - 1, len(want)} // and all behind the content
	for i := len(want) + 1; i < len(whole); i++ {
		places = append(places, i)
	}
	for _, at := range places {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << (at % 8)
		check(fmt.Sprintf("bit in byte %d of %d", at, len(whole)), bad)
	}
	for _, n := range []int{0, 1, 10, len(want), len(whole) - SegmentBytes, len(whole) - 8, len(whole) - 1} {
		check(fmt.Sprintf("cut at %d of %d", n, len(whole)), whole[:n])
	}
	check("one byte more", append(bytes.Clone(whole), 0))
	swapped := bytes.Clone(whole)
	copy(swapped, whole[SegmentBytes:2*SegmentBytes])
	copy(swapped[SegmentBytes:], whole[:SegmentBytes])
	check("two segments in the wrong order", swapped)

	// Moved aside, it is not there, and can be written again.
	if err := s.Quarantine(ns, id); err != nil {
		t.Fatal(err)
	}
	if err := s.Quarantine(ns, id); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if _, err := s.Open(ns, id); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after it was moved aside: %v", err)
	}
	commit(t, s, ns, id, string(want))
	found := 0
	err = s.Damaged(func(r Ref, name string, written time.Time) error {
		if found++; r != (Ref{ns, id}) || time.Since(written) > time.Hour {
			t.Errorf("moved aside: %v, written %v", r, written)
		}
		return s.RemoveDamaged(name)
	})
	if err != nil || found != 1 {
		t.Errorf("%d files were moved aside, %v", found, err)
	}
	wantFiles(t, dir, 1)
}

// source is another node's blob.
func source(t *testing.T, want []byte) (sums []byte) {
	t.Helper()
	s, ns, id := open(t, t.TempDir()), kv.NewNamespaceID(), kv.NewBlobID()
	commit(t, s, ns, id, string(want))
	f, err := s.Open(ns, id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return f.Sums()
}

// A copy that was interrupted goes on behind the last whole segment that is right, also after the process has ended.
func TestResume(t *testing.T) {
	want := content(4*SegmentBytes + 100)
	sums := source(t, want)
	for name, test := range map[string]struct {
		written int
		spoil   func(t *testing.T, partial string)
		found   int64
	}{
		"nothing":             {0, nil, 0},
		"a part of a segment": {SegmentBytes - 1, nil, 0},
		"some":                {2*SegmentBytes + 10, nil, 2 * SegmentBytes},
		"all but the end":     {len(want) - 1, nil, 4 * SegmentBytes},
		"all":                 {len(want), nil, int64(len(want))},
		"a bit has flipped": {4 * SegmentBytes, func(t *testing.T, partial string) {
			flip(t, partial, SegmentBytes+5)
		}, SegmentBytes},
		"the power was cut": {4 * SegmentBytes, func(t *testing.T, partial string) {
			if err := os.Truncate(partial, SegmentBytes/2); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(partial, 4*SegmentBytes); err != nil { // zeros
				t.Fatal(err)
			}
		}, 0},
		"too long": {4 * SegmentBytes, func(t *testing.T, partial string) {
			if err := os.Truncate(partial, 9*SegmentBytes); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
			w, err := s.Resume(ns, id, int64(len(want)), sums)
			if err != nil || w.Size() != 0 {
				t.Fatalf("begins at %v: %v", w, err)
			}
			if _, err := s.Resume(ns, id, int64(len(want)), sums); !errors.Is(err, ErrBusy) {
				t.Errorf("twice at once: %v", err)
			}
			if _, err := w.Write(want[:test.written]); err != nil {
				t.Fatal(err)
			}
			if err := w.Abort(); err != nil {
				t.Fatal(err)
			}
			if test.spoil != nil {
				test.spoil(t, s.partialPath(Ref{ns, id}))
			}
			s = open(t, dir) // the process is another one
			if has(t, s, ns, id) {
				t.Error("an unfinished copy is visible")
			}
			w, err = s.Resume(ns, id, int64(len(want)), sums)
			if err != nil || w.Size() != test.found {
				t.Fatalf("goes on at %d, want %d: %v", w.Size(), test.found, err)
			}
			if _, err := w.Write(want[w.Size():]); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			if read(t, s, ns, id) != string(want) {
				t.Error("the copy differs")
			}
			if _, err := s.Resume(ns, id, int64(len(want)), sums); !errors.Is(err, ErrExists) {
				t.Errorf("of a committed blob: %v", err)
			}
			wantFiles(t, dir, 1)
		})
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// A copy takes exactly what was announced.
func TestResumeRefuses(t *testing.T) {
	want := content(2*SegmentBytes + 100)
	sums := source(t, want)
	bad := bytes.Clone(want)
	bad[SegmentBytes+1] ^= 1
	dir := t.TempDir()
	s, ns, id := open(t, dir), kv.NewNamespaceID(), kv.NewBlobID()
	resume := func() *Writer {
		t.Helper()
		w, err := s.Resume(ns, id, int64(len(want)), sums)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	if _, err := resume().Write(bad); !errors.Is(err, ErrDamaged) {
		t.Errorf("a wrong segment: %v", err)
	}
	w := resume()
	if w.Size() != SegmentBytes { // what was right is kept
		t.Errorf("goes on at %d", w.Size())
	}
	if err := w.Commit(); !errors.Is(err, ErrDamaged) || has(t, s, ns, id) {
		t.Errorf("half a copy: %v", err)
	}
	if _, err := resume().Write(append(bytes.Clone(want[SegmentBytes:]), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("more than announced: %v", err)
	}
	for _, n := range []int64{-1, 0, 1, SegmentBytes, 1 << 60} {
		if _, err := s.Resume(ns, kv.NewBlobID(), n, sums); err == nil {
			t.Errorf("%d bytes of checksums were taken for %d bytes", len(sums), n)
		}
	}
	refs := 0
	err := s.Partials(func(r Ref) error { refs++; return s.DropPartial(r) })
	if err != nil || refs != 1 {
		t.Errorf("%d partial files, %v", refs, err)
	}
	wantFiles(t, dir, 0)
	w = resume()
	if err := s.DropPartial(Ref{ns, id}); err != nil { // somebody is busy with it
		t.Error(err)
	}
	if _, err := w.Write(want); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Error(err)
	}
	if s.Writing(ns, id) || len(s.resumed) != 0 {
		t.Error("a writer was not let go of")
	}
}

// The power is cut at random points: a blob whose Commit has returned is there and whole, and whatever is visible is whole.
func TestPowerCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 40 {
		mem := vfs.NewCrashableMem()
		s, err := OpenFS(mem, "/blobs")
		if err != nil {
			t.Fatal(err)
		}
		promised := map[Ref]int{}
		spaces := []kv.NamespaceID{kv.NewNamespaceID(), kv.NewNamespaceID(), kv.NewNamespaceID()}
		for range 1 + rng.IntN(8) {
			r, n := Ref{spaces[rng.IntN(len(spaces))], kv.NewBlobID()}, sizes[rng.IntN(len(sizes))]
			var w *Writer
			if rng.IntN(3) == 0 {
				w, err = s.Resume(r.Namespace, r.ID, int64(n), source(t, content(n)))
			} else {
				w, err = s.Create(r.Namespace, r.ID)
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(content(n)); err != nil {
				t.Fatal(err)
			}
			switch rng.IntN(6) {
			case 0:
				if err := w.Abort(); err != nil {
					t.Fatal(err)
				}
			case 1: // cut while it is being written
			default:
				if err := w.Commit(); err != nil {
					t.Fatal(err)
				}
				promised[r] = n
			}
		}
		after := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if s, err = OpenFS(after, "/blobs"); err != nil {
			t.Fatal(err)
		}
		err = s.Walk(func(ns kv.NamespaceID, id kv.BlobID, _ int64, _ time.Time) error {
			f, err := s.Open(ns, id)
			if err != nil {
				return err
			}
			n, ok := promised[Ref{ns, id}]
			got, rerr := io.ReadAll(f)
			if ok && !bytes.Equal(got, content(n)) {
				rerr = errors.Join(rerr, errors.New("other bytes than were written"))
			}
			delete(promised, Ref{ns, id})
			return errors.Join(rerr, f.Close())
		})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if len(promised) != 0 {
			t.Fatalf("round %d: %d blobs are lost that were acknowledged", round, len(promised))
		}
	}
}

// The directories that Open leaves alone are no namespaces.
func TestOpenKeepsPartials(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, name := range []string{partialName, damagedName} {
		if err := os.WriteFile(filepath.Join(dir, name, "not a blob"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(
		s.Partials(func(r Ref) error { return fmt.Errorf("%v is a partial", r) }),
		s.Damaged(func(r Ref, _ string, _ time.Time) error { return fmt.Errorf("%v is damaged", r) }))
	if err != nil {
		t.Error(err)
	}
	if n := len(walk(t, open(t, dir))); n != 0 {
		t.Errorf("%d blobs", n)
	}
}
