package cache

import "sync/atomic"

// sieve is the eviction order of SIEVE (Zhang et al., "SIEVE is Simpler than LRU", NSDI 2024): new entries come in at the
// head, a hit only sets a bit, and the hand walks from the tail to the head, sparing what was visited since it last came.
type sieve struct {
	head, tail slotID
	hand       slotID
	len        atomic.Int32 // read without the shard's lock
}

func (l *sieve) push(t *slots, id slotID) {
	l.len.Add(1)
	l.link(t, id)
}

// link is push for what has been counted before.
func (l *sieve) link(t *slots, id slotID) {
	s := t.at(id)
	s.prev, s.next = 0, l.head
	if l.head != 0 {
		t.at(l.head).prev = id
	}
	l.head = id
	if l.tail == 0 {
		l.tail = id
	}
}

func (l *sieve) remove(t *slots, id slotID) {
	l.len.Add(-1)
	s := t.at(id)
	if l.hand == id {
		l.hand = s.prev
	}
	if s.prev != 0 {
		t.at(s.prev).next = s.next
	} else {
		l.head = s.next
	}
	if s.next != 0 {
		t.at(s.next).prev = s.prev
	} else {
		l.tail = s.prev
	}
	s.prev, s.next = 0, 0
}

// victim is the entry to evict next, 0 when the list is empty. The hand stays on it until it is removed.
func (l *sieve) victim(t *slots) slotID {
	if l.tail == 0 {
		return 0
	}
	if l.hand == 0 {
		l.hand = l.tail
	}
	for s := t.at(l.hand); s.visited; s = t.at(l.hand) {
		s.visited = false
		if l.hand = s.prev; l.hand == 0 {
			l.hand = l.tail
		}
	}
	return l.hand
}
