package cache

import (
	"maps"

	"kvmesh/raftstore/kv"
)

// target is a key in one epoch.
type target struct {
	epoch kv.Epoch
	hash  uint64 // hash64 of the key in that epoch
	ns    kv.NamespaceID
	key   string
}

func (v *view) target(ns kv.NamespaceID, key string) target {
	return target{v.epoch, v.hasher.Key(ns, key), ns, key}
}

// store offers e, a fill's answer or a write's result, to the cache (I3). r is its registration, made before S was read
// and before anybody was asked. It reports whether e, or something newer, is held now.
//
// The race that this decides, for a key k that is not held or held at an older state:
//
//	fill:   register k · read S · ask, answer is the state at revision 7 ·                          · store
//	record:                                                S=8 · mark k (r.hit=8) · W=8
//
// The answer is older than the record that marked k while nothing that could be marked was there. Stored as it came it
// would count as current at W=8 and stay so until its TTL. So it is stored marked, or not at all.
func (c *Cache) store(r *registration, e *Entry) (kept bool) {
	ns, key, epoch := e.Namespace(), e.Key(), e.Epoch()
	c.forgetPast(c.view.Load(), ns, key)
	sh := c.shard(r.hash)
	sh.mu.Lock()
	v := c.view.Load() // under the lock, so that nobody stores into an epoch that has moved on
	switch {
	case epoch != v.epoch:
		sh.mu.Unlock()
		return false
	case r.epoch != v.epoch:
		sh.mu.Unlock()
		// The registration belongs to a superseded epoch, whose hashes nobody marks any more: it has heard nothing.
		c.remember(epoch, ns, key, e.AsOf)
		return false
	}
	if kept = sh.storeLocked(c, v, r, e); kept && r.read {
		if _, sl := sh.slots.find(r.hash); sl != nil {
			sl.read = true
		}
	}
	sh.mu.Unlock()
	c.noteShown(epoch, e.AsOf)
	c.makeRoom()
	return kept
}

// forgetPast removes a key's entry of the epoch before v's, because a state of v's epoch is about to be shown, and
// nothing older may be after that (I5).
func (c *Cache) forgetPast(v *view, ns kv.NamespaceID, key string) {
	if v.past == nil {
		return
	}
	h := v.past.hasher.Key(ns, key)
	c.shard(h).forget(c, target{v.past.epoch, h, ns, key})
}

// remember makes later answers for a key at least as new as rev, which is shown without being held.
func (c *Cache) remember(epoch kv.Epoch, ns kv.NamespaceID, key string, rev kv.Revision) {
	v := c.view.Load()
	if v.epoch != epoch {
		return
	}
	c.forgetPast(v, ns, key)
	t := v.target(ns, key)
	sh := c.shard(t.hash)
	sh.mu.Lock()
	if v = c.view.Load(); v.epoch == epoch {
		sh.remember(c, v, t, rev)
	}
	sh.mu.Unlock()
	c.noteShown(epoch, rev)
}

// storeLocked decides under the shard's lock. It may change e, which nobody else knows yet.
func (s *shard) storeLocked(c *Cache, v *view, r *registration, e *Entry) bool {
	s.enter(v.epoch)
	var held *Entry // of this epoch and key
	if _, sl := s.slots.find(r.hash); sl != nil && sl.entry.Epoch() == v.epoch {
		if sl.entry.is(e.Namespace(), e.Key()) {
			held = sl.entry
		} else { // another key of the same hash gives way
			s.note(c, v, r.hash, sl.entry.AsOf)
		}
	}
	hit, fed := max(r.hit, r.hinted), r.hit
	if held != nil {
		m := held.known()
		hit, fed = max(hit, m.newer), max(fed, m.fed)
	}
	if hit > e.AsOf && !mutLateUnmarked { // overtaken already: nothing is frozen, there is nothing to freeze
		e.mark = &mark{newer: hit, fed: fed, at: c.Now()}
	}
	if held == nil {
		_, floored := v.floorAbove(e.Namespace(), e.AsOf)
		if ((e.mark != nil || floored) && !mutLateUnmarked) || e.AsOf < max(s.noted[r.hash], s.notedAll) {
			s.note(c, v, r.hash, e.AsOf)
			c.metrics.late.WithLabelValues("dropped").Inc()
			return false
		}
		s.put(c, r.hash, e)
		return true
	}
	if e.mark != nil {
		c.metrics.late.WithLabelValues("marked").Inc()
	}
	newer := e.AsOf > held.AsOf // AsOf is compared, never Revision: a deleted key has none
	if mutCompareRevision {
		newer = e.Revision > held.Revision
	}
	switch {
	case newer, mutIgnoreAsOf:
		s.put(c, r.hash, e)
	case e.AsOf == held.AsOf: // the same state, proven again
		if !held.unknown() {
			e.ProvenAt = max(e.ProvenAt, held.ProvenAt)
		}
		if m := held.known(); e.mark != nil && m.newer > held.AsOf {
			e.mark.at = m.at
		}
		s.put(c, r.hash, e)
	}
	return true
}

// disprove drops what hints alone have said about a key: revisions above asOf, the confirmed leader's answer, that were
// known before it was asked, which is at most asked. Gossip carries no authority; without this a single message with a
// revision far ahead would keep a key, or a namespace, out of the cache for ever. Dropping an honest hint costs
// promptness only, because the feed tells the same, and what the feed has told stays.
func (c *Cache) disprove(t target, r *registration, asOf, asked kv.Revision) {
	bogus := func(rev kv.Revision) bool { return rev > asOf && rev <= asked }
	c.mu.Lock()
	if v := c.view.Load(); v.epoch == t.epoch && bogus(v.hinted[t.ns].rev) {
		c.publish(func(n *view) {
			n.hinted = maps.Clone(n.hinted)
			delete(n.hinted, t.ns)
		})
	}
	c.mu.Unlock()
	sh := c.shard(t.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if bogus(r.hinted) {
		r.hinted = 0
	}
	_, sl := sh.slots.find(t.hash)
	if sl == nil || !sl.entry.of(t) {
		return
	}
	if m := sl.entry.known(); bogus(m.newer) && m.newer > m.fed {
		next := *sl.entry
		m.newer = m.fed // it stays marked: the answer is about to replace it
		next.mark = &m
		sl.replace(c, &next)
	}
}

// Shown remembers that the state of a key was shown to a client by something else than a read of that key (a listing, a
// failed condition): later reads here are not older (I7). rev is the revision of the key's last write as it was shown,
// or, for an absence, the revision of the state that was looked at.
func (c *Cache) Shown(epoch kv.Epoch, ns kv.NamespaceID, key string, rev kv.Revision) {
	c.remember(epoch, ns, key, rev)
}

// NoteListed remembers the revision that a listing showed, so that later listings here are not older.
func (c *Cache) NoteListed(epoch kv.Epoch, rev kv.Revision) {
	if epoch == c.view.Load().epoch {
		c.noteShown(epoch, rev)
	}
}
