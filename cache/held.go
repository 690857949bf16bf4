package cache

import (
	"time"
	"unsafe"

	"kvmesh/raftstore/kv"
)

// Held is what the cache holds of a key, found and not yet judged. The zero Held is nothing.
type Held struct {
	v *view
	e *Entry
}

// Look finds what is held of a key, without allocating. key is not kept, and may be changed as soon as Look has returned.
func (c *Cache) Look(ns kv.NamespaceID, key []byte) Held {
	v := c.view.Load()
	// A string in name only: look-ups read it and do not keep it.
	return Held{v, c.lookup(v, ns, unsafe.String(unsafe.SliceData(key), len(key)))}
}

// Entry is the entry that is held, nil when there is none.
func (h Held) Entry() *Entry { return h.e }

// Fresh answers a default read of the key that h was found for, by the same table as Get, if that needs no waiting. When it
// reports false, nothing has been counted.
func (c *Cache) Fresh(h Held, limit time.Duration) (Answer, bool) {
	return c.fresh(h.v, h.e, Read{Limit: limit})
}
