package cache

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"testing"
	"unsafe"

	"kvmesh/raftstore/kv"
)

// TestSizeClasses: what an allocation is said to take is what the allocator gives it.
func TestSizeClasses(t *testing.T) {
	for n := 1; n <= 3*maxSmallSize; n++ {
		if n > 4096 && n%64 > 1 { // classes are multiples of 128 here
			continue
		}
		if got := cap(append([]byte(nil), make([]byte, n)...)); got != sizeClass(n) {
			t.Fatalf("%d bytes take %d, not %d", n, got, sizeClass(n))
		}
	}
	if n := sizeClass(0); n != 0 {
		t.Errorf("nothing takes %d bytes", n)
	}
	chunk := int(unsafe.Sizeof([slotsPerChunk]slot{})) + 8 // the header of an allocation with pointers of more than 512 bytes
	if n := sizeClass(chunk); n != slotBytes*slotsPerChunk {
		t.Errorf("a chunk of slots takes %d bytes", n)
	}
}

// TestEntryKeepsState: an entry gives back what it was made of, and keeps nothing of the caller's but a large value.
func TestEntryKeepsState(t *testing.T) {
	blob, write := kv.NewBlobID(), kv.NewWriteID()
	big := make([]byte, 100_000)
	for i, s := range []State{
		{},
		{Key: "k", Absent: true, AsOf: 9},
		{Key: "k", Value: []byte{}, Revision: 3, AsOf: 5, ProvenAt: -7, Expiry: 1 << 40},
		{Key: "k", Value: []byte("value"), Size: 5, Metadata: []byte(`{"a":1}`)},
		{Key: "k", Value: make([]byte, 1024), Size: 1024},
		{Key: "k", Value: big, Size: int64(len(big)), Blob: blob, WriteID: write},
		{Key: "streamed", Size: kv.MaxValueBytes, Blob: blob, WriteID: write, Metadata: []byte("1")},
		{Key: "k", Marked: true, Newer: 8, fed: 7, MarkedAt: 6},
		{Key: "k", Marked: true, Unknown: true, ProvenAt: void},
	} {
		s.Namespace, s.Epoch = nsB, epoch2
		e := newEntry(&s)
		if got := e.state(); !reflect.DeepEqual(got, s) {
			t.Errorf("%d: %+v became %+v", i, s, got)
		}
		if want := s.Value == nil && !s.Absent && !s.Blob.IsZero(); e.Streamed() != want {
			t.Errorf("%d: streamed: %v", i, !want)
		}
		if n := len(s.Value); n > 0 && n <= maxSmallSize {
			s.Value[0]++
			if bytes.Equal(e.Value(), s.Value) {
				t.Errorf("%d: the entry's value is the caller's", i)
			}
		}
		if n := len(e.Value()); cap(e.Value()) != n || cap(e.Metadata()) != len(e.Metadata()) {
			t.Errorf("%d: whoever appends to what an entry gives writes into the entry", i)
		}
	}
	if e := newEntry(&State{Value: big}); unsafe.SliceData(e.Value()) != unsafe.SliceData(big) {
		t.Error("a large value was copied")
	}
	if e := newEntry(&State{Value: big[:50_000]}); unsafe.SliceData(e.Value()) == unsafe.SliceData(big) {
		t.Error("half of an allocation keeps all of it")
	}
	for _, s := range []State{
		{Key: string(make([]byte, 1<<16))}, {Metadata: make([]byte, 1<<16)}, {Size: sizeMask + 1}, {Size: -1},
	} {
		if err := checkFits(s.Key, s.Metadata, s.Size, 0); err == nil {
			t.Errorf("a key of %d bytes, metadata of %d, and a size of %d fit", len(s.Key), len(s.Metadata), s.Size)
		}
	}
}

// TestSlots holds the table against a map, with hashes that meet in it.
func TestSlots(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var all slots
	want := map[uint64]*Entry{}
	hash := func() uint64 { return rng.Uint64N(40) | rng.Uint64N(3)<<31 | rng.Uint64N(3)<<40 }
	most := 0
	for range 200_000 {
		h := hash()
		switch _, sl := all.find(h); {
		case (sl == nil) != (want[h] == nil) || (sl != nil && sl.entry != want[h]):
			t.Fatalf("%x: found %v, want %v", h, sl, want[h])
		case sl == nil && rng.IntN(3) > 0:
			e := &Entry{hash: h}
			want[h] = e
			all.add(e)
		case sl != nil && rng.IntN(3) == 0:
			delete(want, h)
			all.remove(h)
		}
		most = max(most, len(want))
	}
	n := 0
	for sl := range all.all() {
		if want[sl.entry.hash] != sl.entry {
			t.Fatalf("%x is in the table", sl.entry.hash)
		}
		n++
	}
	if n != len(want) || most < 200 {
		t.Errorf("%d slots in use, want %d; at most there were %d", n, len(want), most)
	}
	if all.made > most {
		t.Errorf("%d slots were made for %d entries: freed ones are not used again", all.made, most)
	}
	if got := int64(all.made*slotBytes + len(all.cells)*cellBytes); got != all.bytes {
		t.Errorf("%d bytes, the books say %d", got, all.bytes)
	}
}

// TestMemory: what an entry takes beyond its key and value, and how close the memory of a full cache is to what it may
// take, by the live heap.
func TestMemory(t *testing.T) {
	live := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools still held is gone
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, tc := range []struct{ size, bytes int }{
		{16, 16 << 20}, {288, 16 << 20}, {1024, 16 << 20}, {16 << 10, 32 << 20}, {1 << 20, 128 << 20},
	} {
		t.Run(fmt.Sprint(tc.size), func(t *testing.T) {
			before := live()
			c := New(Options{Bytes: int64(tc.bytes), Clock: func() Mono { return 0 }})
			defer c.Close()
			c.Adopt(epoch1, 5)
			write := func(key string, s State) {
				s.Epoch, s.AsOf, s.Revision = epoch1, 5, 5
				must(t, c.BeginWrite(nsA, key).Done(s))
			}
			n, keys := 0, 0
			for c.Stats().Bytes < int64(tc.bytes)*99/100 && n*tc.size < 2*tc.bytes {
				key := fmt.Sprintf("key/of/some/length/%08d", n)
				write(key, State{Value: make([]byte, tc.size)})
				write(key+"-", State{Absent: true})
				keys = len(key)
				n++
			}
			s, took := c.Stats(), live()-before
			if took > int64(tc.bytes)*105/100 || took < int64(tc.bytes)*95/100 {
				t.Errorf("a cache of %d bytes, which says that it takes %d, takes %d", tc.bytes, s.Bytes, took)
			}
			if diff := took - s.Bytes; diff > int64(tc.bytes)/32 || diff < -int64(tc.bytes)/32 {
				t.Errorf("%d entries of %d bytes take %d, the books say %d", s.Entries, tc.size, took, s.Bytes)
			}
			values := took - c.absent.bytes.Load()
			beyond := float64(values)/float64(s.Entries) - float64(tc.size+keys)
			t.Logf("%d entries of %d bytes and %d absences: %.1f%% of the cache's size, %.0f bytes an entry beyond key and value",
				s.Entries, tc.size, s.AbsentEntries, 100*float64(took)/float64(tc.bytes), beyond)
			if beyond > 200 && tc.size <= 1024 {
				t.Errorf("an entry takes %.0f bytes beyond key and value", beyond)
			}
			runtime.KeepAlive(c)
		})
	}
}

// TestCompact: the slots of what has made way are given back, and order, marks of visits and books stay as they were.
func TestCompact(t *testing.T) {
	r := newRig(t)
	s := &r.c.shards[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	const n = 1000
	for i := range n {
		sl := s.put(r.c, uint64(i), newEntry(&State{Namespace: nsA, Key: fmt.Sprint(i), Epoch: epoch1, Absent: i%5 == 0}))
		sl.visited, sl.read = i%2 == 0, i%3 == 0
	}
	s.main.hand, _ = s.slots.find(n - 3)
	before := r.c.Stats().Bytes
	for i := range n * 4 / 5 {
		id, _ := s.slots.find(uint64(i))
		s.remove(r.c, id)
	}
	if s.slots.made > n/4 {
		t.Errorf("%d slots are left for %d entries", s.slots.made, s.slots.used)
	}
	if e := s.slots.at(s.main.hand).entry; e.hash != n-3 {
		t.Errorf("the hand is at %d", e.hash)
	}
	next := uint64(n * 4 / 5)
	for id := s.main.tail; id != 0; id = s.slots.at(id).prev {
		if next%5 == 0 { // an absence
			next++
		}
		if sl := s.slots.at(id); sl.entry.hash != next || sl.visited != (next%2 == 0) || sl.read != (next%3 == 0) {
			t.Fatalf("%d: %+v", next, sl)
		}
		next++
	}
	if next != n {
		t.Errorf("the order ends at %d", next)
	}
	sum := s.slots.bytes
	for sl := range s.slots.all() {
		sum += sl.entry.cost()
	}
	if got := r.c.Stats().Bytes; got != sum || got > before/3 {
		t.Errorf("the books say %d bytes, before %d; it is %d", got, before, sum)
	}
}
