package cache

import (
	"sync"
	"sync/atomic"

	"kvmesh/raftstore/kv"
)

// numShards is enough that two cores seldom meet at one lock, and few enough that an adoption can visit them all.
const numShards = 64

// maxNotedPerShard bounds the revisions noted for keys that are not held; beyond it they become one for the whole shard.
const maxNotedPerShard = 4096

// shard holds the keys whose hash begins alike.
type shard struct {
	// mu is the one lock for marking and storing (I2): a fill that is being stored and a record that marks its key never
	// interleave. It guards everything below and is held for memory operations only.
	mu    sync.Mutex
	slots slots
	regs  map[uint64][]*registration
	// noted is P: the highest revision shown or acknowledged beyond W for a key that is not held (I7). notedAll stands
	// for all keys of the shard once there were too many. Both are revisions of epoch.
	epoch    kv.Epoch
	noted    map[uint64]kv.Revision
	notedAll kv.Revision
	flights  map[uint64]*flight
	main     sieve
	absent   sieve
}

// registration is a fill, or a write, in flight for a key: it hears of the records that hit the key meanwhile (I3).
type registration struct {
	hash   uint64
	epoch  kv.Epoch
	read   bool        // a reader waits for it
	hit    kv.Revision // the highest record of the feed that marked the key since; under the shard's lock
	hinted kv.Revision // the highest hint; under the shard's lock
}

func (s *shard) init() {
	s.regs = make(map[uint64][]*registration)
	s.noted = make(map[uint64]kv.Revision)
	s.flights = make(map[uint64]*flight)
}

func (c *Cache) shard(hash uint64) *shard { return &c.shards[hash>>(64-6)] }

// mark tells the key of hash that it changed at revision to. v is the present view; its F is the F before the record. It
// returns the entry if it was read since its last change: such are refilled at once, so that refills never outnumber
// reads.
func (s *shard) mark(c *Cache, v *view, hash uint64, to kv.Revision, now Mono, hint bool) (hot *Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.regs[hash] {
		if hint {
			r.hinted = max(r.hinted, to)
		} else {
			r.hit = max(r.hit, to)
		}
	}
	_, sl := s.slots.find(hash)
	if sl == nil || sl.entry.Epoch() != v.epoch {
		return nil
	}
	was := sl.entry
	if e := v.marked(was, to, now, hint); e != was {
		sl.replace(c, e)
		if sl.read {
			sl.read, hot = false, e
		}
	}
	return hot
}

// marked is e after a record at revision to hit its key.
func (v *view) marked(e *Entry, to kv.Revision, now Mono, hint bool) *Entry {
	if to <= e.AsOf { // I4
		return e
	}
	next, was := *e, e.known()
	m := was
	m.newer = max(m.newer, to)
	if !hint {
		m.fed = max(m.fed, to)
	}
	next.mark = &m
	if e.mark != nil {
		if m == was {
			return e
		}
		return &next
	}
	// Freeze: from here on the entry gains nothing from F. One that lay below a floor was frozen by it already.
	frozen, at := v.f, now
	if fl, ok := v.floorAbove(e.Namespace(), e.AsOf); ok {
		frozen, at = fl.f, fl.at
	}
	m.at = at
	next.ProvenAt = max(e.ProvenAt, frozen)
	return &next
}

// register announces a fill or write of the key. What the returned registration needs to be asked for follows from
// leastFor, which must be called afterwards.
func (s *shard) register(hash uint64, epoch kv.Epoch) *registration {
	r := &registration{hash: hash, epoch: epoch}
	s.mu.Lock()
	s.regs[hash] = append(s.regs[hash], r)
	s.mu.Unlock()
	return r
}

func (s *shard) unregister(r *registration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.regs[r.hash]
	for i, x := range list {
		if x == r {
			list[i] = list[len(list)-1]
			list[len(list)-1] = nil
			list = list[:len(list)-1]
			break
		}
	}
	if len(list) == 0 {
		delete(s.regs, r.hash)
	} else {
		s.regs[r.hash] = list
	}
}

// heldAndNoted reads, in one step, the held entry of a key, if it is of the epoch, and P(key).
func (s *shard) heldAndNoted(t target) (held *Entry, p kv.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.epoch == t.epoch {
		p = max(s.noted[t.hash], s.notedAll)
	}
	if _, sl := s.slots.find(t.hash); sl != nil && sl.entry.of(t) {
		held = sl.entry
	}
	return held, p
}

// enter moves what is noted on to epoch, where the revisions of an older one mean nothing (I5). The caller holds the lock.
// Each shard moves on when somebody first comes to it with the new epoch, so that nothing noted of the new one is lost.
func (s *shard) enter(epoch kv.Epoch) {
	if epoch.Compare(s.epoch) <= 0 {
		return
	}
	s.epoch, s.notedAll = epoch, 0
	clear(s.noted)
}

func (s *shard) enterLocking(epoch kv.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enter(epoch)
}

// note raises P(key), for a key that is not held, to a revision of v's epoch. The caller holds the lock and has loaded v
// under it.
func (s *shard) note(c *Cache, v *view, hash uint64, rev kv.Revision) {
	s.enter(v.epoch)
	if rev <= max(v.w, s.noted[hash], s.notedAll) || mutForgetP {
		return
	}
	if _, known := s.noted[hash]; !known && len(s.noted) >= maxNotedPerShard {
		for h, r := range s.noted {
			if r <= v.w { // W has passed it
				delete(s.noted, h)
			}
		}
		if len(s.noted) > maxNotedPerShard/2 { // so that the next walk is far away
			for _, r := range s.noted {
				s.notedAll = max(s.notedAll, r)
			}
			clear(s.noted)
		}
	}
	s.noted[hash] = rev
	c.metrics.noted.Inc()
}

// remember makes every later answer for a key at least as new as rev, which was shown without being stored: an older
// entry goes, because even while it is marked it would be served for a while, and P(key) is noted. The caller holds the
// lock and has loaded v under it.
func (s *shard) remember(c *Cache, v *view, t target, rev kv.Revision) {
	if id, sl := s.slots.find(t.hash); sl != nil && sl.entry.of(t) && t.epoch == v.epoch {
		if v.asOf(sl.entry, v.judge(sl.entry)) >= rev {
			return
		}
		s.note(c, v, t.hash, sl.entry.AsOf)
		s.remove(c, id)
	}
	s.note(c, v, t.hash, rev)
}

// get looks a key up under one hash.
func (s *shard) get(hash uint64, ns kv.NamespaceID, key string) *Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, sl := s.slots.find(hash)
	if sl == nil || !sl.entry.is(ns, key) {
		return nil
	}
	sl.visited = true
	sl.read = true
	return sl.entry
}

// forget removes a key's entry of the given epoch.
func (s *shard) forget(c *Cache, t target) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id, sl := s.slots.find(t.hash); sl != nil && sl.entry.of(t) {
		s.remove(c, id)
	}
}

// put places e, which nobody else knows yet, into the slot of hash. The caller holds the lock.
func (s *shard) put(c *Cache, hash uint64, e *Entry) *slot {
	e.hash = hash
	if id, sl := s.slots.find(hash); sl != nil {
		if sl.entry.Absent() == e.Absent() {
			sl.replace(c, e)
			return sl
		}
		s.remove(c, id) // it moves to the other share
	}
	bytes := s.slots.bytes
	id := s.slots.add(e)
	c.main.bytes.Add(s.slots.bytes - bytes)
	s.list(e.Absent()).push(&s.slots, id)
	b := c.budgetOf(e)
	b.bytes.Add(e.cost())
	b.entries.Add(1)
	return s.slots.at(id)
}

// replace puts e in the place of an entry of the same hash and share. The caller holds the shard's lock.
func (sl *slot) replace(c *Cache, e *Entry) {
	c.budgetOf(e).bytes.Add(e.cost() - sl.entry.cost())
	sl.entry = e
}

// remove takes a slot out. The caller holds the lock.
func (s *shard) remove(c *Cache, id slotID) {
	e := s.slots.at(id).entry
	s.list(e.Absent()).remove(&s.slots, id)
	s.slots.remove(e.hash)
	b := c.budgetOf(e)
	b.bytes.Add(-e.cost())
	b.entries.Add(-1)
	if n, made := s.slots.used, s.slots.made; n == 0 || (made > 2*slotsPerChunk && n < made/4) {
		s.compact(c)
	}
}

// compact gives back the slots of small entries that have made way for few large ones. The caller holds the lock, and knows
// no slot by its id.
func (s *shard) compact(c *Cache) {
	old := s.slots
	s.slots = slots{}
	for _, l := range []*sieve{&s.main, &s.absent} {
		id, hand := l.tail, l.hand
		l.head, l.tail, l.hand = 0, 0, 0
		for id != 0 { // from the tail on, because what comes in goes to the head
			was := old.at(id)
			now := s.slots.add(was.entry)
			sl := s.slots.at(now)
			sl.visited, sl.read = was.visited, was.read
			l.link(&s.slots, now)
			if id == hand {
				l.hand = now
			}
			id = was.prev
		}
	}
	c.main.bytes.Add(s.slots.bytes - old.bytes)
}

// evict removes one entry of the given share. What it proved beyond W is noted under the same lock, before anybody can
// miss the key (I7).
func (s *shard) evict(c *Cache, absent bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.list(absent).victim(&s.slots)
	if id == 0 {
		return false
	}
	v := c.view.Load()
	if e := s.slots.at(id).entry; e.Epoch() == v.epoch {
		s.note(c, v, e.hash, e.AsOf)
	}
	s.remove(c, id)
	return true
}

func (s *shard) list(absent bool) *sieve {
	if absent {
		return &s.absent
	}
	return &s.main
}

// budget is the memory of one share of the cache. That of values has the slots of all entries in it.
type budget struct {
	max     int64 // of absences; values have what these leave
	bytes   atomic.Int64
	entries atomic.Int64
}

func (c *Cache) budgetOf(e *Entry) *budget {
	if e.Absent() {
		return &c.absent
	}
	return &c.main
}

// makeRoom evicts until all fits, and absences take no more than their share. What they, and large values, leave of theirs is
// for values.
func (c *Cache) makeRoom() {
	room := c.opts.Bytes - c.large.bytes.Load()
	for c.main.bytes.Load()+min(c.absent.bytes.Load(), c.absent.max) > room && c.evictOne(false) {
		c.metrics.evictions.Inc()
	}
	for c.absent.bytes.Load() > c.absent.max && c.evictOne(true) {
		c.metrics.evictions.Inc()
	}
}

// Of evictChoices shards, evictStride apart, the fullest one evicts. Were they to take turns, their sizes would walk at
// random, and hot keys would go from a shard that happens to be nearly empty; a few choices keep them alike (Mitzenmacher,
// "The Power of Two Choices in Randomized Load Balancing", 2001).
const evictChoices, evictStride = 4, 21

// evictOne goes round the shards, so that the whole cache is one eviction order, roughly.
func (c *Cache) evictOne(absent bool) bool {
	for range numShards {
		first, best := c.hand.Add(1), uint32(0)
		most := int32(-1)
		for i := range uint32(evictChoices) {
			at := first + i*evictStride
			if n := c.shards[at%numShards].list(absent).len.Load(); n > most {
				most, best = n, at
			}
		}
		if most > 0 && c.shards[best%numShards].evict(c, absent) {
			return true
		}
	}
	return false
}
