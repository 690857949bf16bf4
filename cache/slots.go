package cache

import "iter"

// slot is one key's place in a shard. entry is replaced, never changed; all fields are under the shard's lock.
type slot struct {
	entry      *Entry
	prev, next slotID // in the order of eviction; next also links the slots that are free
	visited    bool
	read       bool // served since its last change: worth refilling as soon as it changes again
}

// slotID names a slot of a shard; 0 is none.
type slotID uint32

const (
	// slotsPerChunk is how many slots are allocated at once; they and the header of their allocation nearly fill a size class.
	slotsPerChunk = 128
	// slotBytes and cellBytes are what a slot and a cell of the table take.
	slotBytes = 25
	cellBytes = 8
	// minCells is the size of a table's first cells.
	minCells = 8
)

// slots finds a shard's slots by hash: a table of cells with linear probing, each the lower half of a hash and the id of a
// slot, so that nothing but the entry that is looked for is touched on the way, and growing touches none. Slots refer to each
// other by id. To the garbage collector all this is one pointer for an entry.
type slots struct {
	cells  []uint64 // a power of two, at most 3/4 in use; 0 is empty
	used   int
	chunks []*[slotsPerChunk]slot
	made   int    // slots that have ever been used
	free   slotID // those that are not in use now
	bytes  int64  // that the slots made and the cells take; of the last chunk some may not have been used yet
}

// at is the slot of an id.
func (t *slots) at(id slotID) *slot { return &t.chunks[(id-1)/slotsPerChunk][(id-1)%slotsPerChunk] }

// find looks a hash up; 0 and nil when nothing is held under it.
func (t *slots) find(hash uint64) (slotID, *slot) {
	if _, id := t.cell(hash); id != 0 {
		return id, t.at(id)
	}
	return 0, nil
}

// cell finds the cell of a hash.
func (t *slots) cell(hash uint64) (at int, id slotID) {
	if t.used == 0 {
		return 0, 0
	}
	mask := len(t.cells) - 1
	for at = int(uint32(hash)) & mask; t.cells[at] != 0; at = (at + 1) & mask {
		if id = slotID(t.cells[at]); uint32(t.cells[at]>>32) == uint32(hash) && t.at(id).entry.hash == hash {
			return at, id
		}
	}
	return 0, 0
}

// add makes a slot for an entry whose hash is not held.
func (t *slots) add(e *Entry) slotID {
	if (t.used+1)*4 > len(t.cells)*3 {
		t.grow()
	}
	id := t.free
	if id != 0 {
		t.free = t.at(id).next
	} else {
		if t.made == len(t.chunks)*slotsPerChunk {
			t.chunks = append(t.chunks, new([slotsPerChunk]slot))
		}
		t.made++
		t.bytes += slotBytes
		id = slotID(t.made)
	}
	*t.at(id) = slot{entry: e}
	t.place(uint64(uint32(e.hash))<<32 | uint64(id))
	t.used++
	return id
}

func (t *slots) place(cell uint64) {
	mask := len(t.cells) - 1
	at := int(cell>>32) & mask
	for t.cells[at] != 0 {
		at = (at + 1) & mask
	}
	t.cells[at] = cell
}

func (t *slots) grow() {
	old := t.cells
	t.cells = make([]uint64, max(minCells, 2*len(old)))
	t.bytes += int64(len(t.cells)-len(old)) * cellBytes
	for _, cell := range old {
		if cell != 0 {
			t.place(cell)
		}
	}
}

// remove frees the slot of a hash that is held. What stands behind its cell moves up, so that no search ends too early
// (Knuth, The Art of Computer Programming 3, 6.4, Algorithm R).
func (t *slots) remove(hash uint64) {
	at, id := t.cell(hash)
	if id == 0 {
		return
	}
	mask := len(t.cells) - 1
	for i := (at + 1) & mask; t.cells[i] != 0; i = (i + 1) & mask {
		if home := int(t.cells[i]>>32) & mask; (i-home)&mask >= (i-at)&mask {
			t.cells[at], at = t.cells[i], i
		}
	}
	t.cells[at] = 0
	t.used--
	*t.at(id) = slot{next: t.free}
	t.free = id
}

// all goes over the slots in use, in no order. None may be added or removed meanwhile.
func (t *slots) all() iter.Seq[*slot] {
	return func(yield func(*slot) bool) {
		for _, cell := range t.cells {
			if cell != 0 && !yield(t.at(slotID(cell))) {
				return
			}
		}
	}
}
