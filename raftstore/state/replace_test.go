package state

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// TestReplaceTellsTheObserver: the feed learns that anything may have changed, before a reader can see it.
func TestReplaceTellsTheObserver(t *testing.T) {
	f := newState(t)
	f.at(1, create(ns2, "two"), put("a", "1"))
	if _, err := f.Checkpoint("snap"); err != nil {
		t.Fatal(err)
	}
	ahead := f.Applied()
	g := newStateOn(t, f, "other")
	var told []Committed
	g.Observe(func(c Committed) {
		told = append(told, c)
		if g.Applied().Revision != 1 {
			t.Error("readers saw the new state before the observer")
		}
	})
	if err := g.Replace("snap"); err != nil {
		t.Fatal(err)
	}
	want := []kv.Record{{Epoch: testEpoch, Prev: 1, To: 3, Kind: kv.RecordAll}}
	if len(told) != 1 || !told[0].Replaced || told[0].Applied != ahead || !reflect.DeepEqual(told[0].Records, want) || len(told[0].Control.Namespaces) != 2 {
		t.Errorf("told %+v", told)
	}
	if g.Applied() != ahead || dump(t, g.State) != dump(t, f.State) || len(g.Control().Namespaces) != 2 {
		t.Errorf("replaced: %+v", g.Applied())
	}
	if err := g.WaitRevision(t.Context(), 3); err != nil {
		t.Error(err)
	}
	g.Observe(nil)
	g.next = ahead.Index + 1
	if r := g.at(2, create(ns2, "again"), put("a", "2")); r.Ops[0].Code != kv.CodeNamespaceExists || r.Ops[1].Revision != 4 {
		t.Errorf("the writer still has the old state in memory: %+v", r)
	}
	if err := g.Replace("nowhere"); err == nil || g.get(ns1, "a").Absent {
		t.Errorf("replacing by nothing: %v", err)
	}
	g.at(3, put("still", "works"))
}

// newStateOn opens another initialised state on f's file system.
func newStateOn(t *testing.T, f *fixture, dir string) *fixture {
	t.Helper()
	s, err := Open(dir, Options{FS: f.fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	g := &fixture{State: s, t: t, next: 1}
	g.at(0, initOp())
	return g
}

// TestReplaceWithReaders swaps the state to and fro under readers: each answer is of one state or the other, never a mix.
func TestReplaceWithReaders(t *testing.T) {
	f := newState(t)
	value := func(rev kv.Revision) string { return strings.Repeat(fmt.Sprintf("%08d", rev), 300) }
	for range 20 { // every key of a state has the same age: revision = a multiple of 3, minus 1, 0 and plus 1
		next := f.Applied().Revision + 1
		f.at(1, put("a", value(next)), put("b", value(next+1)), put("c", value(next+2)))
		if n := f.Applied().Index; n%5 == 0 {
			if _, err := f.Checkpoint(fmt.Sprint("snap", n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := readOnce(f, value); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for _, n := range []int{5, 10, 20, 15} {
		if err := f.Replace(fmt.Sprint("snap", n)); err != nil {
			t.Fatal(err)
		}
		f.next = f.Applied().Index + 1
		next := f.Applied().Revision + 1
		f.at(1, put("a", value(next)), put("b", value(next+1)), put("c", value(next+2)))
	}
	close(stop)
	readers.Wait()
	list, err := f.fs.List("state")
	if err != nil || strings.Count(strings.Join(list, " "), generationPrefix) != 2 { // the generation and the marker's name
		t.Errorf("left over: %q, %v", list, err)
	}
}

func readOnce(f *fixture, value func(kv.Revision) string) error {
	item, a, err := f.Get(ns1, "b", false)
	if err != nil {
		return err
	}
	if item.Revision != a.Revision-1 || string(item.Value) != value(item.Revision) {
		return fmt.Errorf("b of revision %d at %+v", item.Revision, a)
	}
	res, err := f.List(ListQuery{Namespace: ns1, Values: true})
	if err != nil {
		return err
	}
	for i, it := range res.Items {
		if want := res.Applied.Revision - 2 + kv.Revision(i); it.Item.Revision != want || string(it.Item.Value) != value(want) {
			return fmt.Errorf("%s of revision %d in a list at %+v", it.Key, it.Item.Revision, res.Applied)
		}
	}
	recs, err := f.Changes(res.Applied.Revision-3, 3)
	if err != nil || len(recs) == 0 || recs[len(recs)-1].To < res.Applied.Revision-3 {
		// A replacement may have gone back meanwhile; then there is nothing after that revision.
		if now := f.Applied().Revision; err != nil || now >= res.Applied.Revision {
			return fmt.Errorf("changes after %d: %+v, %w", res.Applied.Revision-3, recs, err)
		}
	}
	return nil
}

// TestLongReadEndsAtReplace: EachBlob lets go of a state that has been replaced.
func TestLongReadEndsAtReplace(t *testing.T) {
	f := newState(t)
	for i := range uint64(5) {
		f.at(1, putBlob(fmt.Sprint("k", i), 10+i))
	}
	if _, err := f.Checkpoint("snap"); err != nil {
		t.Fatal(err)
	}
	reading, swapped, replaced := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f.Observe(func(Committed) { close(swapped) })
	go func() {
		<-reading
		replaced <- f.Replace("snap")
	}()
	n := 0
	err := f.EachBlob(func(kv.NamespaceID, kv.BlobID, int64) error {
		if n++; n == 1 {
			close(reading)
			<-swapped // Replace itself cannot finish before this read does
		}
		return nil
	})
	if !errors.Is(err, ErrReplaced) || n != 1 {
		t.Errorf("%v after %d blobs", err, n)
	}
	if err := <-replaced; err != nil {
		t.Error(err)
	}
}

// TestCheckpointWhileApplying: a copy holds exactly what its Applied says.
func TestCheckpointWhileApplying(t *testing.T) {
	f := newState(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 5 {
			before := f.Applied()
			dir := fmt.Sprint("snap", i)
			a, err := f.Checkpoint(dir)
			if err != nil || a.Index < before.Index {
				t.Errorf("checkpoint at %d of %+v: %v", before.Index, a, err)
			}
			got, err := InspectFS(f.fs, dir)
			if err != nil || got != a {
				t.Errorf("inspect: %+v, %v", got, err)
			}
		}
	}()
	for i, applying := 0, true; applying; i++ {
		f.at(1, put("k", fmt.Sprint(i)), put(fmt.Sprint("n", i), strings.Repeat("v", 3000)))
		select {
		case <-done:
			applying = false
		default:
		}
	}
	if _, err := f.Checkpoint("snap0"); err == nil {
		t.Error("a checkpoint overwrote another")
	}
	g := newStateOn(t, f, "other")
	if err := g.Replace("snap4"); err != nil {
		t.Fatal(err)
	}
	n := g.Applied().Index - 1 // of the puts
	if st, err := g.NamespaceStats(ns1); err != nil || uint64(st.Keys) != n+min(n, 1) {
		t.Errorf("%d keys after %d entries, %v", st.Keys, n, err)
	}
}

// TestGetIsConsistent: the item is the key's state at exactly the Applied that came with it, while Apply runs.
func TestGetIsConsistent(t *testing.T) {
	f := newState(t)
	f.at(1, put("k", "1"))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			var last kv.Revision
			for {
				select {
				case <-stop:
					return
				default:
				}
				seen := f.Applied().Revision
				item, a, err := f.Get(ns1, "k", false)
				if err != nil || item.Revision != a.Revision || a.Revision < seen || a.Revision < last {
					t.Errorf("revision %d at %+v, before %d and %d, %v", item.Revision, a, seen, last, err)
					return
				}
				last = a.Revision
			}
		})
	}
	for i := range 2000 {
		f.at(1, put("k", fmt.Sprint(i)))
	}
	close(stop)
	readers.Wait()
}

func TestChanges(t *testing.T) {
	f := newState(t)
	f.at(1, put("a", "1"), put("b", "1"), create(ns2, "two"), put("c", "1"), drop(ns2), del("a")) // revisions 2 to 7
	h := feed.NewHasher(testEpoch)
	all := []kv.Record{
		{Epoch: testEpoch, Prev: 0, To: 1, Kind: kv.RecordKeys},
		{Epoch: testEpoch, Prev: 1, To: 3, Kind: kv.RecordKeys, Hashes: []uint64{h.Key(ns1, "a"), h.Key(ns1, "b")}},
		{Epoch: testEpoch, Prev: 3, To: 4, Kind: kv.RecordKeys},
		{Epoch: testEpoch, Prev: 4, To: 5, Kind: kv.RecordKeys, Hashes: []uint64{h.Key(ns1, "c")}},
		{Epoch: testEpoch, Prev: 5, To: 6, Kind: kv.RecordNamespace, Namespace: ns2},
		{Epoch: testEpoch, Prev: 6, To: 7, Kind: kv.RecordKeys, Hashes: []uint64{h.Key(ns1, "a")}},
	}
	half := kv.Record{Epoch: testEpoch, Prev: 1, To: 2, Kind: kv.RecordKeys, Hashes: all[1].Hashes[:1]}
	for _, c := range []struct {
		after kv.Revision
		max   int
		want  []kv.Record
	}{
		{0, 100, all},
		{0, 2, []kv.Record{all[0], half}},
		{3, 100, all[2:]},
		{7, 100, nil},
		{8, 100, nil},
		{0, 0, nil},
	} {
		if got, err := f.Changes(c.after, c.max); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("after %d: %+v, %v", c.after, got, err)
		}
	}
	trim := func(rev kv.Revision) { f.at(1, command.Op{Kind: command.KindTrim, Revision: rev}) }
	trim(3)
	for after := range kv.Revision(7) {
		got, err := f.Changes(after, 100)
		if after < 3 && !errors.Is(err, ErrTrimmed) || after >= 3 && (err != nil || got[0].Prev != after) {
			t.Errorf("trimmed up to 3, after %d: %+v, %v", after, got, err)
		}
	}
	trim(math.MaxUint64) // no further than the newest revision
	if _, err := f.Changes(6, 1); !errors.Is(err, ErrTrimmed) {
		t.Errorf("all trimmed: %v", err)
	}
	f.at(1, put("z", "1"))
	if got, err := f.Changes(7, 9); err != nil || len(got) != 1 || got[0].To != 8 {
		t.Errorf("after trimming everything: %+v, %v", got, err)
	}
}

// TestNewEpoch: one entry with writes around the new epoch. What the observer is told, what Changes gives and what ETags
// mean all change sides at the same revision.
func TestNewEpoch(t *testing.T) {
	f := newState(t)
	f.at(1, put("a", "1"), put("b", "1")) // revisions 2 and 3
	var told []Committed
	f.Observe(func(c Committed) { told = append(told, c) })

	for _, n := range []uint64{0, 199, 200} {
		if r := f.at(2, newEpoch(n)).Ops[0]; r.Code != kv.CodeInternal || r.Revision != 0 {
			t.Errorf("epoch %d in epoch 200: %+v", n, r)
		}
	}
	if a := f.Applied(); a.Epoch != testEpoch || a.Revision != 3 {
		t.Fatalf("refused, but %+v", a)
	}
	told = nil
	second := kv.Epoch(id16(201))
	etag := func(e kv.Epoch, rev kv.Revision) command.Cond {
		return command.Cond{Kind: command.CondRevision, EpochTag: [4]byte(e[12:]), Revision: rev}
	}
	res := f.at(3, put("a", "2"), newEpoch(201),
		when(put("a", "3"), etag(testEpoch, 4)), when(put("a", "4"), etag(second, 4)), put("c", "1"))
	want := command.Result{Epoch: second, MeshTime: 3000, Revision: 7, Ops: []command.OpResult{
		{Revision: 4, AsOf: 4}, // the key was written again
		{Revision: 5, AsOf: 7},
		{Code: kv.CodeConditionFailed, Current: 4, AsOf: 5},
		{Revision: 6, AsOf: 7},
		{Revision: 7, AsOf: 7},
	}}
	if !reflect.DeepEqual(res, want) {
		t.Errorf("got  %+v\nwant %+v", res, want)
	}
	h1, h2 := feed.NewHasher(testEpoch), feed.NewHasher(second)
	after := []kv.Record{{Epoch: second, Prev: 5, To: 7, Kind: kv.RecordKeys, Hashes: []uint64{h2.Key(ns1, "a"), h2.Key(ns1, "c")}}}
	records := append([]kv.Record{
		{Epoch: testEpoch, Prev: 3, To: 4, Kind: kv.RecordKeys, Hashes: []uint64{h1.Key(ns1, "a")}},
		{Epoch: second, Prev: 0, To: 5, Kind: kv.RecordAll},
	}, after...)
	if len(told) != 1 || !reflect.DeepEqual(told[0].Records, records) {
		t.Errorf("told   %+v\nwant %+v", told, records)
	}
	if c := told[0].Control; c == nil || c.Epoch != second || c.Revision != 5 || len(c.Namespaces) != 1 || !reflect.DeepEqual(*c, f.Control()) {
		t.Errorf("control state %+v", c)
	}
	for rev := range kv.Revision(5) {
		if got, err := f.Changes(rev, 100); !errors.Is(err, ErrTrimmed) {
			t.Errorf("changes after %d, of the old epoch: %+v, %v", rev, got, err)
		}
	}
	if got, err := f.Changes(5, 100); err != nil || !reflect.DeepEqual(got, after) {
		t.Errorf("changes after 5: %+v, %v", got, err)
	}
	// Everything is there after a restart, and still stamped with the new epoch.
	f.at(4, newEpoch(202))
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = openOn(t, f.fs)
	if a, c := f.Applied(), f.Control(); a.Epoch != kv.Epoch(id16(202)) || a.Revision != 8 || c.Epoch != a.Epoch || c.Revision != 8 {
		t.Errorf("after a restart: %+v, control state %s at %d", a, c.Epoch, c.Revision)
	}
	if it := f.get(ns1, "a"); string(it.Value) != "4" || it.Revision != 6 {
		t.Errorf("a key after two epochs: %+v", it)
	}
}

// released lists up to limit released blobs.
func released(s *State, limit int) (rs []Released, err error) {
	stop := errors.New("stop")
	err = s.EachReleased(func(r Released) error {
		if len(rs) == limit {
			return stop
		}
		rs = append(rs, r)
		return nil
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return rs, err
}

func TestBlobs(t *testing.T) {
	f := newState(t)
	f.at(0, create(ns2, "two"))
	blobs := func() (named, freed string) {
		err := f.EachBlob(func(ns kv.NamespaceID, id kv.BlobID, size int64) error {
			if n, ok, err := f.BlobSize(ns, id); !ok || err != nil || size != 1<<20 || n != size {
				t.Errorf("blob %s of %d bytes: %v, %v", id, size, ok, err)
			}
			named += fmt.Sprint(id[15], " ")
			return nil
		})
		rs, rerr := released(f.State, 100)
		for _, r := range rs {
			freed += fmt.Sprintf("%d@%d ", r.Blob[15], r.MeshTime/1000)
			if _, ok, err := f.BlobSize(r.Namespace, r.Blob); ok || err != nil {
				t.Errorf("released blob %s is named: %v", r.Blob, err)
			}
		}
		if err != nil || rerr != nil {
			t.Error(err, rerr)
		}
		return named, freed
	}
	steps := []struct {
		name            string
		ops             []command.Op
		named, released string
	}{
		{"named", []command.Op{putBlob("a", 1), putBlob("b", 2), putBlob("c", 3), in(ns2, putBlob("a", 4))}, "1 2 3 4 ", ""},
		{"replaced by a blob, by a value, deleted", []command.Op{putBlob("a", 5), put("b", "1"), del("c")}, "5 4 ", "1@1 2@1 3@1 "},
		{"the same write again", []command.Op{putBlob("a", 5)}, "5 4 ", "1@1 2@1 3@1 "},
		{"one that another key names is refused", []command.Op{putBlob("b", 5)}, "5 4 ", "1@1 2@1 3@1 "},
		{"in one batch too", []command.Op{putBlob("b", 6), putBlob("c", 6), del("b")}, "5 4 ", "1@1 2@1 3@1 6@4 "},
		{"a late duplicate names it again", []command.Op{putBlob("a", 1)}, "1 4 ", "2@1 3@1 5@5 6@4 "},
		{"its namespace goes", []command.Op{in(ns2, putBlob("z", 7)), drop(ns2)}, "1 ", "2@1 3@1 4@6 5@5 6@4 7@6 "},
	}
	for i, s := range steps {
		f.at(int64(i), s.ops...)
		if named, released := blobs(); named != s.named || released != s.released {
			t.Errorf("%s: named %q, released %q", s.name, named, released)
		}
	}
	f.at(9, putUntil("gone", "", 9), func() command.Op { op := putBlob("x", 8); op.Expiry = 9; return op }(), command.Op{Kind: command.KindSweep, Limit: 9})
	if _, freed := blobs(); !strings.Contains(freed, "8@9") {
		t.Errorf("the sweep releases blobs: %q", freed)
	}
	for n := 0; ; n++ { // on an idle state, as the blob store does
		rs, err := released(f.State, 2)
		if err != nil || n > 10 {
			t.Fatalf("the list does not end: %+v, %v", rs, err)
		}
		if len(rs) == 0 {
			break
		}
		if err := f.ForgetReleased(rs); err != nil {
			t.Fatal(err)
		}
	}
	stop := errors.New("stop")
	if err := f.EachBlob(func(kv.NamespaceID, kv.BlobID, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the callback's error: %v", err)
	}
}

// TestObserverHearsOfBlobs: whoever listens knows after each commit which blobs are named, however long the commit is.
func TestObserverHearsOfBlobs(t *testing.T) {
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 3))
		log := randomLog(rng, 400)
		f := openOn(t, vfs.NewMem())
		heard := map[kv.BlobID]Blob{}
		changes := 0
		f.Observe(func(c Committed) {
			for _, b := range c.Released {
				delete(heard, b.ID)
			}
			for _, b := range c.Named {
				heard[b.ID] = b
			}
			changes += len(c.Named) + len(c.Released)
		})
		for len(log) > 0 {
			n := min(1+rng.IntN(12), len(log))
			if _, err := f.Apply(log[:n]); err != nil {
				t.Fatal(err)
			}
			log = log[n:]
			named := map[kv.BlobID]Blob{}
			err := f.EachBlob(func(ns kv.NamespaceID, id kv.BlobID, size int64) error {
				named[id] = Blob{ns, id, size}
				return nil
			})
			if err != nil || !maps.Equal(named, heard) {
				t.Fatalf("seed %d: the observer knows of %v, named are %v (%v)", seed, heard, named, err)
			}
		}
		if changes < 20 {
			t.Errorf("seed %d: only %d changes", seed, changes)
		}
	}
}

// TestListAtItsOwnTime: a key that has expired by the state's mesh time is not listed, however slow the reader's clock is.
func TestListAtItsOwnTime(t *testing.T) {
	f := newState(t)
	f.at(10, putUntil("a", "1", 20), put("b", "1"))
	f.at(25, put("c", "1"))
	res, err := f.List(ListQuery{Namespace: ns1, Now: 5})
	if err != nil || len(res.Items) != 2 || res.Items[0].Key != "b" {
		t.Errorf("%+v, %v", res.Items, err)
	}
}
