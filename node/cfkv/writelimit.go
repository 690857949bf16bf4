package cfkv

import (
	"hash/maphash"
	"sync"
	"time"

	"kvmesh/raftstore/kv"
)

const (
	// writeInterval is the least time between two writes of one key.
	writeInterval = time.Second
	// maxRemembered bounds the writes that are remembered: two generations of that many, 16 bytes each and a map around
	// them, a few MiB. A node that takes more writes than that in a second forgets the oldest of them early.
	maxRemembered = 1 << 16
)

// WriteLimit allows one write a second to each key, as Workers KV does; DESIGN.md says why that is an option. It counts the
// writes that this node takes: a key that is written at several nodes gets a second from each. It is bounded: at worst it
// forgets, and allows too much. A nil *WriteLimit allows everything. It is safe for concurrent use.
type WriteLimit struct {
	seed maphash.Seed
	now  func() time.Time

	mu         sync.Mutex           // guards what follows
	young, old map[uint64]time.Time // when a key was last written, by its hash; everything in old is older than in young
	begun      time.Time            // when young was
}

// NewWriteLimit returns a limit by the clock now, of which only differences are used.
func NewWriteLimit(now func() time.Time) *WriteLimit {
	return &WriteLimit{seed: maphash.MakeSeed(), now: now, young: map[uint64]time.Time{}}
}

// Allow says whether a key may be written now, and takes note that it is if so. A write that is refused does not count.
func (l *WriteLimit) Allow(ns kv.NamespaceID, key string) bool {
	if l == nil {
		return true
	}
	var h maphash.Hash
	h.SetSeed(l.seed)
	_, _ = h.Write(ns[:]) // of a maphash, they cannot fail
	_, _ = h.WriteString(key)
	k := h.Sum64()

	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	l.turn(now)
	for _, m := range []map[uint64]time.Time{l.young, l.old} {
		if at, ok := m[k]; ok && now.Sub(at) < writeInterval {
			return false
		}
	}
	l.young[k] = now
	return true
}

// turn begins a new generation when young is a second old, so that what is dropped no longer matters, or full. The caller
// holds mu.
func (l *WriteLimit) turn(now time.Time) {
	if age := now.Sub(l.begun); age >= writeInterval || len(l.young) >= maxRemembered {
		l.old, l.young, l.begun = l.young, map[uint64]time.Time{}, now
	}
}
