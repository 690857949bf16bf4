package feed

import (
	"errors"
	"sync"

	"kvmesh/raftstore/kv"
)

// ErrTooOld is returned by Ring.After when the ring no longer reaches back to the asked position, or never held it: the
// reader goes down the ladder (change index, floors).
var ErrTooOld = errors.New("the ring no longer reaches back that far")

// Ring keeps the most recent change records of one epoch, in order and without gaps. Appending never blocks; readers
// wait on the channel that Changed returned before they looked.
type Ring struct {
	maxHashes int // bounds the memory, counted in hashes of 8 bytes; see cost

	mu      sync.Mutex // guards all below; held for slice operations only
	epoch   kv.Epoch
	records []kv.Record // oldest first; records[i].To == records[i+1].Prev
	hashes  int
	last    kv.Revision   // To of the newest record, or the start position
	changed chan struct{} // closed and replaced by every change
}

// recordCost is what a record weighs beside its lists, in hashes: about 100 bytes.
const recordCost = 12

// cost is what a record weighs, in hashes.
func cost(rec kv.Record) int { return recordCost + len(rec.Hashes) + len(rec.Floors)*floorBytes/8 }

// NewRing returns a ring that holds about maxBytes of records.
func NewRing(maxBytes int) *Ring {
	return &Ring{maxHashes: maxBytes / 8, changed: make(chan struct{})}
}

// Reset empties the ring and sets its position: the next record continues at rev in epoch.
func (r *Ring) Reset(epoch kv.Epoch, rev kv.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reset(epoch, rev)
	r.wake()
}

// Append adds rec. A record that is known already is ignored; one that leaves a gap, or is of another epoch, empties the
// ring first, so that what the ring holds is always dense.
func (r *Ring) Append(rec kv.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec.Epoch != r.epoch || rec.Prev > r.last {
		r.reset(rec.Epoch, rec.Prev)
	}
	if rec.To <= r.last {
		return
	}
	if rec.Prev < r.last { // overlaps: what was known is covered twice, which is harmless, but the ring stays dense
		rec.Prev = r.last
	}
	r.records = append(r.records, rec)
	r.hashes += cost(rec)
	r.last = rec.To
	drop := 0
	for r.hashes > r.maxHashes && drop < len(r.records)-1 {
		r.hashes -= cost(r.records[drop])
		drop++
	}
	if drop > 0 {
		clear(r.records[:drop]) // let go of their lists
		r.records = r.records[drop:]
	}
	r.wake()
}

// After returns the records that follow rev, at most max of them, and the channel that is closed at the next change.
// No record and no error means that the reader has everything.
func (r *Ring) After(epoch kv.Epoch, rev kv.Revision, max int) ([]kv.Record, <-chan struct{}, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if epoch != r.epoch || rev > r.last {
		return nil, r.changed, ErrTooOld
	}
	if rev == r.last {
		return nil, r.changed, nil
	}
	if len(r.records) == 0 || rev < r.records[0].Prev {
		return nil, r.changed, ErrTooOld
	}
	lo, hi := 0, len(r.records) // first record whose To is above rev
	for lo < hi {
		if mid := (lo + hi) / 2; r.records[mid].To <= rev {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	end := min(len(r.records), lo+max)
	return append([]kv.Record(nil), r.records[lo:end]...), r.changed, nil
}

// Position is the epoch and the newest revision of the ring.
func (r *Ring) Position() (kv.Epoch, kv.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch, r.last
}

func (r *Ring) reset(epoch kv.Epoch, rev kv.Revision) {
	r.epoch, r.last, r.records, r.hashes = epoch, rev, nil, 0
}

func (r *Ring) wake() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Begin sets the position of a ring that holds nothing yet; one that has heard of an epoch is left as it is.
func (r *Ring) Begin(epoch kv.Epoch, rev kv.Revision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch.IsZero() {
		r.reset(epoch, rev)
		r.wake()
	}
}
