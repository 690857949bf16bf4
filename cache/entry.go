package cache

import (
	"math"
	"time"
	"unique"
	"unsafe"

	"kvmesh/raftstore/kv"
)

// Mono is a reading of the node's own monotonic clock. Only readings of one node are ever compared.
type Mono = time.Duration

// void is the F of a node that has proven nothing yet, and the ProvenAt of an entry whose age is unknown. It is far
// enough from the smallest Mono that subtracting it from a real reading does not overflow.
const void Mono = math.MinInt64 / 4

const (
	// swr is how long a marked entry may still be served while one background fill runs, and by how much an unmarked one
	// may overstay its limit meanwhile.
	swr = time.Second
	// staleIfError is the age up to which an old entry is served when the mesh cannot be asked.
	staleIfError = 24 * time.Hour
	// staleWait is how long a reader waits for a fill when an old entry could be served instead.
	staleWait = 200 * time.Millisecond
)

// State is what an Entry is made of: the state of one key, and how current it is known to be.
type State struct {
	Namespace kv.NamespaceID
	Key       string // entries are found by hash; the key tells a collision apart

	Value    []byte // plaintext, in memory only; nil when the value stays in the store (Blob set, Value nil)
	Metadata []byte // compact JSON in plaintext, nil = none
	Size     int64  // of the value, in bytes
	Blob     kv.BlobID
	WriteID  kv.WriteID // kept only beside a Blob, which cannot be opened without it
	Expiry   int64      // unix seconds of mesh time, 0 = never; always wins over freshness

	Absent   bool        // a cached "no such key"
	Revision kv.Revision // of the last write to the key, 0 if Absent
	AsOf     kv.Revision // the state is proven current at this revision
	ProvenAt Mono        // when that was so, by the own clock
	Epoch    kv.Epoch

	Marked   bool        // a later write is known, or nothing is known (Unknown)
	Newer    kv.Revision // the highest such revision, if one is known
	MarkedAt Mono
	Unknown  bool // loaded from disk: marked, its age unknown

	fed kv.Revision // the part of Newer that the feed told, and that no leader's answer can disprove
}

// Entry is the cached state of one key, in little memory. It is immutable: marking it, or proving it again, replaces it, and
// the two share key, metadata and value.
type Entry struct {
	Revision kv.Revision // of the last write to the key, 0 if it is absent
	AsOf     kv.Revision // the state is proven current at this revision
	ProvenAt Mono        // when that was so, by the own clock
	Expiry   int64       // unix seconds of mesh time, 0 = never; always wins over freshness

	scope unique.Handle[scope]
	hash  uint64 // under which it is held
	mark  *mark  // nil: unmarked
	head  *byte  // the key, the metadata and, with isBlob, the blob's id and its write's
	value *byte  // with isHeld: within the head's allocation, or one of its own

	keyLen, metaLen uint16
	size            uint32 // of the value; the highest bits are flags
}

// scope is what many entries have in common.
type scope struct {
	ns    kv.NamespaceID
	epoch kv.Epoch
}

// mark is what is known of a marked entry, and of no other.
type mark struct {
	newer   kv.Revision // the highest later revision, if one is known
	fed     kv.Revision // the part of newer that the feed told, and that no leader's answer can disprove
	at      Mono
	unknown bool // loaded from disk, its age unknown
}

// The flags of Entry.size. Values have at most kv.MaxValueBytes.
const (
	isAbsent = 1 << (31 - iota)
	isHeld   // the value is in memory
	isPacked // in one allocation with the head
	isBlob
	sizeMask = isBlob - 1
)

// idBytes is what follows key and metadata of an entry with a blob.
const idBytes = len(kv.BlobID{}) + len(kv.WriteID{})

// checkFits fails for a state that no Entry can hold. No write that was accepted leads to one.
func checkFits(key string, metadata []byte, size, value int64) error {
	switch {
	case len(key) > math.MaxUint16:
		return kv.Errorf(kv.CodeInternal, "a key of %d bytes", len(key))
	case len(metadata) > math.MaxUint16:
		return kv.Errorf(kv.CodeInternal, "metadata of %d bytes", len(metadata))
	case size < 0 || max(size, value) > sizeMask:
		return kv.Errorf(kv.CodeInternal, "a value of %d bytes", max(size, value))
	}
	return nil
}

// newEntry makes an entry. Of s only a large value is kept: everything else is copied, so that no entry holds on to the
// request or the answer that it came with. s must pass checkFits.
//
// The bytes take one allocation or two, whichever is less: a key beside a value that fills a size class of the allocator
// would push it into the next one.
func newEntry(s *State) *Entry {
	e := &Entry{Revision: s.Revision, AsOf: s.AsOf, ProvenAt: s.ProvenAt, Expiry: s.Expiry}
	e.scope = unique.Make(scope{s.Namespace, s.Epoch})
	e.keyLen, e.metaLen, e.size = uint16(len(s.Key)), uint16(len(s.Metadata)), uint32(s.Size)
	if s.Value != nil {
		e.size = uint32(len(s.Value)) | isHeld
	}
	if s.Absent {
		e.size |= isAbsent
	}
	if !s.Blob.IsZero() {
		e.size |= isBlob
	}
	head, value := e.headLen(), len(s.Value)
	packed := s.Value != nil && value <= maxSmallSize && sizeClass(head+value) <= sizeClass(head)+sizeClass(value)
	room := head
	if packed {
		room += value
	}
	block := append(append(make([]byte, 0, room), s.Key...), s.Metadata...)
	if !s.Blob.IsZero() {
		block = append(append(block, s.Blob[:]...), s.WriteID[:]...)
	}
	e.head = unsafe.SliceData(block)
	if packed {
		e.size |= isPacked
		block = append(block, s.Value...)
		e.value = unsafe.SliceData(block[head:])
	} else if s.Value != nil {
		e.value = unsafe.SliceData(exactly(s.Value))
	}
	if s.Marked {
		e.mark = &mark{newer: s.Newer, fed: s.fed, at: s.MarkedAt, unknown: s.Unknown}
	}
	return e
}

// exactly is b in an allocation that is no larger than it must be: b itself, when it is large and has hardly room to spare.
func exactly(b []byte) []byte {
	if len(b) > maxSmallSize && sizeClass(cap(b)) == sizeClass(len(b)) {
		return b
	}
	return append(make([]byte, 0, len(b)), b...)
}

// state takes an entry apart again. Value and metadata are the entry's own bytes.
func (e *Entry) state() State {
	s := State{
		Namespace: e.Namespace(), Key: e.Key(), Value: e.Value(), Metadata: e.Metadata(), Size: e.Size(), Blob: e.Blob(),
		WriteID: e.WriteID(), Expiry: e.Expiry, Absent: e.Absent(), Revision: e.Revision, AsOf: e.AsOf, ProvenAt: e.ProvenAt,
		Epoch: e.Epoch(), Marked: e.Marked(),
	}
	if m := e.mark; m != nil {
		s.Newer, s.MarkedAt, s.Unknown, s.fed = m.newer, m.at, m.unknown, m.fed
	}
	return s
}

// Namespace is the key's namespace.
func (e *Entry) Namespace() kv.NamespaceID { return e.scope.Value().ns }

// Epoch is the history that the entry's revisions belong to.
func (e *Entry) Epoch() kv.Epoch { return e.scope.Value().epoch }

// Key is the entry's key.
func (e *Entry) Key() string { return unsafe.String(e.head, e.keyLen) }

// Metadata is compact JSON in plaintext, nil when there is none. It must not be changed.
func (e *Entry) Metadata() []byte {
	if e.metaLen == 0 {
		return nil
	}
	return e.headBytes()[e.keyLen:][:e.metaLen:e.metaLen]
}

// Value is the plaintext, which must not be changed; nil when the value stays in the store, and for an absence.
func (e *Entry) Value() []byte {
	switch n := e.size & sizeMask; {
	case e.size&isHeld == 0:
		return nil
	case n == 0:
		return []byte{}
	default:
		return unsafe.Slice(e.value, n)
	}
}

// Size is the value's, in bytes.
func (e *Entry) Size() int64 { return int64(e.size & sizeMask) }

// Absent says that the key is known not to exist.
func (e *Entry) Absent() bool { return e.size&isAbsent != 0 }

// Blob names the value's blob in the store, if it has one.
func (e *Entry) Blob() (id kv.BlobID) {
	if e.size&isBlob != 0 {
		copy(id[:], e.headBytes()[int(e.keyLen)+int(e.metaLen):])
	}
	return id
}

// WriteID is that of the write that made the blob, if there is one.
func (e *Entry) WriteID() (id kv.WriteID) {
	if e.size&isBlob != 0 {
		copy(id[:], e.headBytes()[int(e.keyLen)+int(e.metaLen)+len(kv.BlobID{}):])
	}
	return id
}

// Marked reports whether a later write is known, or nothing is.
func (e *Entry) Marked() bool { return e.mark != nil }

// known is the mark, or what an unmarked entry has in its place.
func (e *Entry) known() mark {
	if e.mark == nil {
		return mark{}
	}
	return *e.mark
}

// unknown reports that the entry's age is not known.
func (e *Entry) unknown() bool { return e.mark != nil && e.mark.unknown }

// Streamed reports whether the value is too large to be held, so that only the key's head is cached.
func (e *Entry) Streamed() bool { return e.size&(isAbsent|isHeld|isBlob) == isBlob }

func (e *Entry) headLen() int {
	n := int(e.keyLen) + int(e.metaLen)
	if e.size&isBlob != 0 {
		n += idBytes
	}
	return n
}

func (e *Entry) headBytes() []byte { return unsafe.Slice(e.head, e.headLen()) }

// is reports whether the entry is that of a key.
func (e *Entry) is(ns kv.NamespaceID, key string) bool {
	return e.Key() == key && e.scope.Value().ns == ns
}

// of reports whether the entry is that of a key in one epoch.
func (e *Entry) of(t target) bool {
	return e.Key() == t.key && e.scope.Value() == scope{t.ns, t.epoch}
}

// cost is the memory that an entry takes, its slot and the table of slots left out.
func (e *Entry) cost() int64 {
	n := sizeClass(int(unsafe.Sizeof(Entry{})))
	if e.mark != nil {
		n += sizeClass(int(unsafe.Sizeof(mark{})))
	}
	head, value := e.headLen(), 0
	if e.size&isHeld != 0 {
		value = int(e.size & sizeMask)
	}
	if e.size&isPacked != 0 {
		return int64(n + sizeClass(head+value))
	}
	return int64(n + sizeClass(head) + sizeClass(value))
}

// standing is how fresh an entry is, seen from one view.
type standing struct {
	marked   bool // by itself, by a floor, or because it is of another epoch
	old      bool // of another epoch: good for stale-if-error only
	proven   Mono // the moment at which the entry is known to have been current
	markedAt Mono
}

// judge is the one freshness function: age = now − (marked ? ProvenAt : max(ProvenAt, F)), where marked includes floors,
// and the proof of a floored entry ends at the smallest F of the floors above its AsOf.
func (v *view) judge(e *Entry) standing {
	if at := e.scope.Value(); at.epoch != v.epoch && !mutNoEpochFloor {
		s := standing{marked: true, old: true, proven: e.ProvenAt, markedAt: e.known().at}
		if past := v.past; e.mark == nil && past != nil && at.epoch == past.epoch {
			frozen := past.f
			if fl, ok := past.floors.above(at.ns, e.AsOf); ok {
				frozen = fl.f
			}
			s.proven = max(s.proven, frozen)
		}
		return s
	}
	if e.mark != nil {
		s := standing{marked: true, proven: e.ProvenAt, markedAt: e.mark.at}
		if mutNoFreeze {
			s.proven = max(s.proven, v.f)
		}
		return s
	}
	if fl, ok := v.floorAbove(e.Namespace(), e.AsOf); ok {
		return standing{marked: true, proven: max(e.ProvenAt, fl.f), markedAt: fl.at}
	}
	return standing{proven: max(e.ProvenAt, v.f)}
}

// asOf is the newest revision at which the entry is known to have been current.
func (v *view) asOf(e *Entry, s standing) kv.Revision {
	if s.marked {
		return e.AsOf
	}
	return max(e.AsOf, v.w)
}
