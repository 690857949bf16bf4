package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/atomicfs"
)

// flip changes bits of one byte of a file, and returns what changes them back.
func flip(t *testing.T, fs vfs.FS, path string, at int64, bits byte) (undo func()) {
	t.Helper()
	file, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err = file.ReadAt(b, at); err == nil {
		b[0] ^= bits
		_, err = file.WriteAt(b, at)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatalf("%s at %d: %v", path, at, err)
	}
	return func() { flip(t, fs, path, at, bits) }
}

// everything is what a reader can see.
func everything(s *State) (map[string]string, error) {
	all := make(map[string]string)
	v, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer v.release()
	err = scan(v.snap, nil, []byte{0xff}, func(key, val []byte) (bool, error) {
		all[string(key)] = string(val)
		return true, nil
	})
	return all, err
}

// TestDamage flips bytes in every kind of file of a state. It is not opened then, or a read says so, or nothing is wrong:
// what is read is never something else.
func TestDamage(t *testing.T) {
	fs := vfs.NewMem()
	f := openOn(t, fs)
	// What a cut manifest leads back to: the state as it was when something was flushed. The Raft log goes on from there.
	var older []map[string]string
	remember := func() map[string]string {
		all, err := everything(f.State)
		if err != nil {
			t.Fatal(err)
		}
		older = append(older, all)
		return all
	}
	older = append(older, map[string]string{})
	remember()
	f.at(1, initOp())
	for i := range 300 {
		f.at(1, put(fmt.Sprintf("key-%d", i), strings.Repeat("v", 10*i)))
	}
	if err := f.Witness(f.Applied().Index, 1); err != nil {
		t.Fatal(err)
	}
	remember()
	for i := range 50 {
		f.at(2, put(fmt.Sprintf("key-%d", i), strings.Repeat("w", 50*i)))
	}
	remember()
	a, err := f.Checkpoint("snap")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := InspectFS(fs, "snap"); err != nil || got != a {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	rng := rand.New(rand.NewPCG(3, 4))
	found, harmless := map[string]int{}, map[string]int{}
	files, err := fs.List("snap")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		path := "snap/" + name
		info, err := fs.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		kind := name[strings.LastIndexByte(name, '.')+1:]
		if i := strings.IndexByte(kind, '-'); i > 0 {
			kind = kind[:i]
		}
		var where []int64
		for i := range min(info.Size(), 60) { // the tails of tables are not in any block
			where = append(where, info.Size()-1-i)
		}
		for range min(int(info.Size()), 25) {
			where = append(where, rng.Int64N(info.Size()))
		}
		for _, at := range where {
			undo := flip(t, fs, path, at, 1<<rng.IntN(8))
			copied := vfs.NewMem() // opening may write
			if _, err := vfs.Clone(fs, copied, "snap", "state/"+firstGeneration); err != nil {
				t.Fatal(err)
			}
			undo()
			var told atomic.Int64
			_, ierr := InspectFS(copied, "state/"+firstGeneration)
			s, err := openDamaged(t, copied, &told)
			var got map[string]string
			if err == nil {
				got, err = everything(s)
				if cerr := s.Close(); cerr != nil && err == nil && told.Load() == 0 {
					t.Errorf("%s at %d: close: %v", name, at, cerr)
				}
			}
			switch {
			case err == nil && !slices.ContainsFunc(older, func(o map[string]string) bool { return maps.Equal(o, got) }):
				t.Fatalf("%s at %d: a wrong value was read", name, at)
			case err != nil && ierr == nil:
				t.Errorf("%s at %d: a reader says %v, Inspect nothing", name, at, err)
			case err == nil && ierr != nil: // a compaction was faster, and did not need what was damaged
				harmless[kind]++
			case err == nil:
				harmless[kind]++
			case !errors.Is(err, ErrDamaged) || !errors.Is(ierr, ErrDamaged):
				// What calls itself an error of the system is not repaired, so it must not be one of these.
				t.Errorf("%s at %d: damage is not called so: %v; Inspect %v", name, at, err, ierr)
			default:
				found[kind]++
			}
		}
	}
	t.Logf("found %v, harmless %v", found, harmless)
	for _, kind := range []string{"sst", "blob"} {
		if found[kind] < 100 {
			t.Errorf("%d flips in %s files were found: the test proves nothing; files %v", found[kind], kind, slices.Sorted(slices.Values(files)))
		}
	}
}

func openDamaged(t *testing.T, fs vfs.FS, told *atomic.Int64) (*State, error) {
	t.Helper()
	if err := fs.MkdirAll("state", 0o700); err != nil {
		t.Fatal(err)
	}
	marker, _, err := atomicfs.LocateMarker(fs, "state", markerName)
	if err == nil {
		err = errors.Join(marker.Move(firstGeneration), marker.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return Open("state", Options{FS: fs, Damaged: func(error) { told.Add(1) }})
}
