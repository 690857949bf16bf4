package state

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// TestCrash: power cuts at random moments lose at most what was not witnessed, never a part of an Apply call, and replaying
// the log from anywhere at or before what is left gives the same content again.
func TestCrash(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 2))
		log := randomLog(rng, 60)
		whole := openOn(t, vfs.NewMem())
		replay(t, whole, log, func() int { return len(log) })
		want := dump(t, whole.State)

		fs := vfs.NewCrashableMem()
		f := openOn(t, fs)
		ends := map[uint64]bool{0: true} // indexes at which an Apply call ended
		var witnessed uint64
		for at := 0; at < len(log); {
			n := min(1+rng.IntN(8), len(log)-at)
			if _, err := f.Apply(log[at : at+n]); err != nil {
				t.Fatal(err)
			}
			at += n
			ends[log[at-1].Index] = true
			switch rng.IntN(6) {
			case 0:
				witnessed = log[at-1].Index
				if err := f.Witness(witnessed, log[at-1].Term); err != nil {
					t.Fatal(err)
				}
			case 1:
				if err := f.w.gen.db.Flush(); err != nil {
					t.Fatal(err)
				}
			case 2:
				fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(3) * 40, RNG: rng})
				f = openOn(t, fs)
				a := f.Applied()
				if a.Index < witnessed || !ends[a.Index] {
					t.Fatalf("seed %d: back at index %d, witnessed %d", seed, a.Index, witnessed)
				}
				for at = 0; at < len(log) && log[at].Index <= a.Index; {
					at++
				}
				at = rng.IntN(at + 1) // the Raft log may begin its replay earlier
			}
		}
		if got := dump(t, f.State); got != want {
			t.Fatalf("seed %d: other content after the crashes\n%s", seed, firstDifference(got, want))
		}
	}
}

// TestWitness: Apply alone is not durable, Witness makes it so, and moves the index past entries that Apply never sees.
func TestWitness(t *testing.T) {
	fs := vfs.NewCrashableMem()
	f := openOn(t, fs)
	f.at(1, initOp(), put("a", "1"))
	if lost := openOn(t, fs.CrashClone(vfs.CrashCloneCfg{})); lost.Applied() != (Applied{}) {
		t.Errorf("without a sync %+v survived: the test proves nothing", lost.Applied())
	}
	if err := f.Witness(9, 4); err != nil {
		t.Fatal(err)
	}
	f.at(2, put("b", "1")) // index 2: below the witnessed one, so skipped
	kept := openOn(t, fs.CrashClone(vfs.CrashCloneCfg{}))
	if a := kept.Applied(); a != f.Applied() || a.Index != 9 || a.Term != 4 || a.Revision != 2 || kept.get(ns1, "a").Absent {
		t.Errorf("after the crash %+v", a)
	}
	if err := f.Witness(5, 9); err != nil || f.Applied().Index != 9 || f.Applied().Term != 4 {
		t.Errorf("an older index moved something: %+v, %v", f.Applied(), err)
	}
}

// TestReplaceCrash cuts the power at every file system operation of a Replace: what opens afterwards is the old state or
// the new one, whole, and nothing is left over.
func TestReplaceCrash(t *testing.T) {
	mem := vfs.NewCrashableMem()
	var mu sync.Mutex // guards clones and armed: Pebble's goroutines use the file system too
	var clones []*vfs.MemFS
	armed := false
	rng := rand.New(rand.NewPCG(5, 6))
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if armed {
			clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: len(clones) % 3 * 50, RNG: rng}))
		}
		return nil
	}))
	f := openOn(t, fs)
	f.at(1, initOp(), put("k", "new"), put("big", strings.Repeat("x", 5000)))
	if err := f.w.gen.db.Flush(); err != nil { // so that the copy has a table, which Open does not write again
		t.Fatal(err)
	}
	if _, err := f.Checkpoint("snap"); err != nil {
		t.Fatal(err)
	}
	copyUnsynced(t, mem, "snap", "staged")
	newApplied := f.Applied()
	f.at(2, put("k", "old"))
	if err := f.Witness(2, 1); err != nil {
		t.Fatal(err)
	}
	oldApplied := f.Applied()
	arm := func(on bool) {
		mu.Lock()
		defer mu.Unlock()
		armed = on
	}
	arm(true)
	if err := f.Replace("staged"); err != nil {
		t.Fatal(err)
	}
	arm(false)
	clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{}))

	sawOld, switched := 0, false
	for i, clone := range clones {
		g := openOn(t, clone)
		want, value := newApplied, "new"
		if g.Applied() == oldApplied {
			want, value = oldApplied, "old"
			sawOld++
		} else {
			switched = true
		}
		if got := g.get(ns1, "k"); g.Applied() != want || string(got.Value) != value || len(g.get(ns1, "big").Value) != 5000 {
			t.Fatalf("cut %d of %d: applied %+v, value %q", i, len(clones), g.Applied(), got.Value)
		}
		generations := 0
		list, err := clone.List("state")
		for _, name := range list {
			if strings.HasPrefix(name, generationPrefix) {
				generations++
			}
		}
		if err != nil || generations != 1 {
			t.Errorf("cut %d: left over in %q (%v)", i, list, err)
		}
	}
	if last := openOn(t, clones[len(clones)-1].CrashClone(vfs.CrashCloneCfg{})); last.Applied() != newApplied {
		t.Errorf("Replace returned before it was durable: %+v", last.Applied())
	}
	if sawOld < 10 || !switched {
		t.Errorf("%d of %d cuts gave the old state: the test proves nothing", sawOld, len(clones))
	}
}

// copyUnsynced copies a directory as a receiver would that leaves the fsyncs to Replace.
func copyUnsynced(t *testing.T, fs vfs.FS, from, to string) {
	t.Helper()
	files, err := fs.List(from)
	if err == nil {
		err = fs.MkdirAll(to, 0o700)
	}
	for _, name := range files {
		if err != nil {
			break
		}
		err = copyFile(fs, from+"/"+name, to+"/"+name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(fs vfs.FS, from, to string) error {
	src, err := fs.Open(from)
	if err != nil {
		return err
	}
	dst, err := fs.Create(to, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = io.Copy(dst, src)
		err = errors.Join(err, dst.Close())
	}
	return errors.Join(err, src.Close())
}

// TestReopenOnDisk does the same round on the operating system's file system.
func TestReopenOnDisk(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir+"/state", Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{State: s, t: t, next: 1}
	f.at(1, initOp(), put("k", "1"), put("big", strings.Repeat("x", 5000)))
	a, err := f.Checkpoint(dir + "/snap/1")
	if err != nil || a != f.Applied() {
		t.Fatalf("checkpoint: %+v, %v", a, err)
	}
	f.at(2, put("k", "2"))
	if got, err := Inspect(dir + "/snap/1"); err != nil || got != a {
		t.Fatalf("inspect: %+v, %v", got, err)
	}
	if err := f.Replace(dir + "/snap/1"); err != nil {
		t.Fatal(err)
	}
	f.next = f.Applied().Index + 1
	f.at(3, put("after", "1"))
	want := dump(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir+"/state", Options{}); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, s); got != want || s.Applied().Revision != 4 {
		t.Errorf("after the reopening: %+v", s.Applied())
	}
	if _, err := os.Stat(dir + "/snap/1"); !os.IsNotExist(err) {
		t.Errorf("the replaced checkpoint is still there: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestOnlyValuesAreSeparated: Pebble moves v/ into blob files, and leaves heads where a listing walks them.
func TestOnlyValuesAreSeparated(t *testing.T) {
	f := newState(t)
	blobFiles := func() (n int) {
		if err := f.w.gen.db.Flush(); err != nil {
			t.Fatal(err)
		}
		files, err := f.fs.List("state/" + firstGeneration)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, ".blob") {
				n++
			}
		}
		return n
	}
	heavy := put("head", strings.Repeat("v", inlineBytes))
	heavy.Metadata = make([]byte, 1024)
	f.at(1, heavy)
	if n := blobFiles(); n != 0 {
		t.Errorf("a head of 2 KiB went to one of %d blob files", n)
	}
	f.at(1, put("value", strings.Repeat("v", inlineBytes+1)))
	if blobFiles() == 0 {
		t.Error("values are not separated")
	}
	if v := f.get(ns1, "value").Value; len(v) != inlineBytes+1 {
		t.Errorf("read back %d bytes", len(v))
	}
}
