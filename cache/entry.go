package cache

import (
	"math"
	"time"

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

// Entry is the cached state of one key. It is immutable: marking it, or proving it again, replaces it.
type Entry struct {
	Namespace kv.NamespaceID
	Key       string // entries are found by hash; the key tells a collision apart

	Value    []byte // plaintext, in memory only; nil when the value stays in the store (Blob set, Value nil)
	Metadata []byte // compact JSON in plaintext, nil = none
	Size     int64  // of the value, in bytes
	Blob     kv.BlobID
	WriteID  kv.WriteID
	Expiry   int64 // unix seconds of mesh time, 0 = never; always wins over freshness

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

// Streamed reports whether the value is too large to be held, so that only the key's head is cached.
func (e *Entry) Streamed() bool { return !e.Absent && e.Value == nil && !e.Blob.IsZero() }

// entryOverhead is about what an entry costs beside key, value and metadata: the Entry itself, its slot, and its share
// of the map.
const entryOverhead = 320

func (e *Entry) cost() int64 {
	return int64(len(e.Key)+len(e.Value)+len(e.Metadata)) + entryOverhead
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
	if e.Epoch != v.epoch && !mutNoEpochFloor {
		s := standing{marked: true, old: true, proven: e.ProvenAt, markedAt: e.MarkedAt}
		if past := v.past; !e.Marked && past != nil && e.Epoch == past.epoch {
			frozen := past.f
			if fl, ok := past.floors.above(e.Namespace, e.AsOf); ok {
				frozen = fl.f
			}
			s.proven = max(s.proven, frozen)
		}
		return s
	}
	if e.Marked {
		s := standing{marked: true, proven: e.ProvenAt, markedAt: e.MarkedAt}
		if mutNoFreeze {
			s.proven = max(s.proven, v.f)
		}
		return s
	}
	if fl, ok := v.floorAbove(e.Namespace, e.AsOf); ok {
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
