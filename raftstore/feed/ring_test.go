package feed

import (
	"errors"
	"testing"

	"kvmesh/raftstore/kv"
)

// TestRingWeighsFloors: the memory bound counts the namespaces of a record as it counts hashes.
func TestRingWeighsFloors(t *testing.T) {
	const records, names = 8, 100
	r := NewRing(8 * records * (recordCost + 3*names)) // room for exactly so many
	r.Begin(epoch, 10)
	for i := range kv.Revision(records) {
		r.Append(kv.Record{Epoch: epoch, Prev: 10 + i, To: 11 + i, Kind: kv.RecordFloors, Floors: make([]kv.Floor, names)})
	}
	if got, _, err := r.After(epoch, 10, 100); err != nil || len(got) != records {
		t.Fatalf("%d records, %v; want %d", len(got), err, records)
	}
	r.Append(kv.Record{Epoch: epoch, Prev: 18, To: 19, Kind: kv.RecordKeys})
	if _, _, err := r.After(epoch, 10, 100); !errors.Is(err, ErrTooOld) {
		t.Errorf("beyond its memory: %v", err)
	}
	if got, _, err := r.After(epoch, 11, 100); err != nil || len(got) != records {
		t.Errorf("%d records, %v; want %d", len(got), err, records)
	}
}

// TestRingNewEpoch: the record that begins an epoch takes the ring over whole, at the revision where it begins: nobody can
// read a position of the new epoch without it, or go on in the old one.
func TestRingNewEpoch(t *testing.T) {
	second := kv.Epoch{15: 2}
	r := NewRing(1 << 10)
	r.Begin(epoch, 10)
	r.Append(kv.Record{Epoch: epoch, Prev: 10, To: 11, Kind: kv.RecordKeys})
	_, woken, _ := r.After(epoch, 11, 1)
	r.Append(kv.Record{Epoch: second, Prev: 0, To: 12, Kind: kv.RecordAll})
	select {
	case <-woken:
	default:
		t.Error("a reader that waits was not told")
	}
	if e, rev := r.Position(); e != second || rev != 12 {
		t.Errorf("at %s.%d", e, rev)
	}
	for _, rev := range []kv.Revision{10, 11, 12} {
		if got, _, err := r.After(epoch, rev, 9); !errors.Is(err, ErrTooOld) {
			t.Errorf("after %d in the old epoch: %+v, %v", rev, got, err)
		}
	}
	r.Append(kv.Record{Epoch: second, Prev: 12, To: 13, Kind: kv.RecordKeys})
	for rev, want := range map[kv.Revision]int{0: 2, 12: 1, 13: 0} {
		if got, _, err := r.After(second, rev, 9); err != nil || len(got) != want {
			t.Errorf("after %d: %+v, %v; want %d records", rev, got, err, want)
		}
	}
}
