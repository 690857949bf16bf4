package cache

import "kvmesh/raftstore/kv"

// Write is a write of one key that this node has taken and whose result it will store: a fill like any other (I3), with
// the same late-fill race, because the feed may tell of a later write before the leader's answer arrives.
type Write struct {
	c    *Cache
	ns   kv.NamespaceID
	key  string
	reg  *registration
	sh   *shard
	sent Mono
}

// BeginWrite registers the key as in flight. Done or Abandon must follow.
func (c *Cache) BeginWrite(ns kv.NamespaceID, key string) *Write {
	v := c.view.Load()
	hash := v.hasher.Key(ns, key)
	w := &Write{c: c, ns: ns, key: key, sh: c.shard(hash), sent: c.Now()}
	w.reg = w.sh.register(hash, v.epoch)
	return w
}

// Done stores the result of an acknowledged write, before its client hears of it, and ends the registration. s carries
// the new state with Epoch and AsOf as the leader gave them; a committed write was current when it committed, so its age
// counts from the moment it was sent. It fails with CodeOutcomeUnknown when a newer epoch has been adopted meanwhile: the
// restored history may not hold the write. The value is the cache's from then on.
func (w *Write) Done(s State) error {
	defer w.Abandon()
	c := w.c
	if err := w.enter(s.Epoch); err != nil {
		return err
	}
	s.Namespace, s.Key, s.ProvenAt = w.ns, w.key, w.sent
	if err := checkFits(s.Key, s.Metadata, s.Size, int64(len(s.Value))); err != nil {
		return err
	}
	if mutProvenAtArrival {
		s.ProvenAt = c.Now()
	}
	c.store(w.reg, newEntry(&s))
	return nil
}

// Forget is Done for a write whose new state is not to be held: later reads here are not older than rev, the revision that
// the write took.
func (w *Write) Forget(epoch kv.Epoch, rev kv.Revision) error {
	defer w.Abandon()
	if err := w.enter(epoch); err != nil {
		return err
	}
	w.c.remember(epoch, w.ns, w.key, rev)
	return nil
}

// enter adopts the epoch of an acknowledged write, if it is a greater one, and fails when it is superseded.
func (w *Write) enter(epoch kv.Epoch) error {
	switch cmp := epoch.Compare(w.c.view.Load().epoch); {
	case cmp < 0:
		return kv.Errorf(kv.CodeOutcomeUnknown, "the mesh began a new epoch while the write was under way; read the key to see whether it is there")
	case cmp > 0:
		w.c.Adopt(epoch, 0)
	}
	return nil
}

// Abandon ends the registration of a write that failed, or whose outcome is unknown.
func (w *Write) Abandon() {
	if w.reg != nil {
		w.sh.unregister(w.reg)
		w.reg = nil
	}
}
