package cache

import "sync/atomic"

// slot is one key's place in a shard. entry is replaced, never changed; all fields are under the shard's lock.
type slot struct {
	hash       uint64
	entry      *Entry
	visited    bool
	read       bool // served since its last change: worth refilling as soon as it changes again
	prev, next *slot
}

// sieve is the eviction order of SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): new entries come in at the
// head, a hit only sets a bit, and the hand walks from the tail to the head, sparing what was visited since it last came.
type sieve struct {
	head, tail *slot
	hand       *slot
	len        atomic.Int32 // read without the shard's lock
}

func (l *sieve) push(s *slot) {
	l.len.Add(1)
	s.prev, s.next = nil, l.head
	if l.head != nil {
		l.head.prev = s
	}
	l.head = s
	if l.tail == nil {
		l.tail = s
	}
}

func (l *sieve) remove(s *slot) {
	l.len.Add(-1)
	if l.hand == s {
		l.hand = s.prev
	}
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.head = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		l.tail = s.prev
	}
	s.prev, s.next = nil, nil
}

// victim is the entry to evict next, nil when the list is empty. The hand stays on it until it is removed.
func (l *sieve) victim() *slot {
	if l.tail == nil {
		return nil
	}
	if l.hand == nil {
		l.hand = l.tail
	}
	for l.hand.visited {
		l.hand.visited = false
		if l.hand = l.hand.prev; l.hand == nil {
			l.hand = l.tail
		}
	}
	return l.hand
}
