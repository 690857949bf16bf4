package state

import (
	"fmt"

	"kvmesh/raftstore/kv"
)

// Get reads one key, and says at which Applied it was so: both are of the same view. An absent key is an Item with Absent
// set; an expired one is returned as it is, because the caller judges expiry. With headOnly the value is left out. An
// unknown namespace is a *kv.Error with CodeNamespaceNotFound, with the Applied at which it was unknown.
func (s *State) Get(ns kv.NamespaceID, key string, headOnly bool) (kv.Item, Applied, error) {
	v, err := s.acquire()
	if err != nil {
		return kv.Item{}, Applied{}, err
	}
	defer v.release()
	if err := v.namespace(ns); err != nil {
		return kv.Item{}, v.applied, err
	}
	item, err := v.item(ns, key, !headOnly)
	return item, v.applied, err
}

func (v *view) item(ns kv.NamespaceID, key string, withValue bool) (item kv.Item, err error) {
	var h head
	found, err := get(v.snap, entryKey(nil, v.bank.head, ns, key), func(val []byte) (err error) {
		h, err = decodeHead(val, &item, withValue)
		return err
	})
	if err != nil {
		return kv.Item{}, err
	}
	if !found {
		return kv.Item{Absent: true}, nil
	}
	if withValue && h.separate {
		if item.Value, err = v.value(ns, key); err != nil {
			return kv.Item{}, err
		}
	}
	return item, nil
}

// value reads a separate value.
func (v *view) value(ns kv.NamespaceID, key string) (value []byte, err error) {
	found, err := get(v.snap, entryKey(nil, v.bank.value, ns, key), func(val []byte) error {
		if len(val) == 0 || val[0] != recordVersion {
			return fmt.Errorf("%w: value of %d bytes", errCorrupt, len(val))
		}
		value = append([]byte{}, val[1:]...)
		return nil
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: the value of a key is missing", errCorrupt)
	}
	return value, err
}

// NamespaceStats counts a namespace. Keys that have expired count until the sweep deletes them.
type NamespaceStats struct {
	Keys         int64
	Bytes        int64       // of keys and of plaintext values
	LastModified kv.Revision // of the last change in the namespace, or of it
}

// NamespaceStats reads the counters of a namespace, in constant time. An unknown namespace is CodeNamespaceNotFound.
func (s *State) NamespaceStats(ns kv.NamespaceID) (NamespaceStats, error) {
	v, err := s.acquire()
	if err != nil {
		return NamespaceStats{}, err
	}
	defer v.release()
	if err := v.namespace(ns); err != nil {
		return NamespaceStats{}, err
	}
	var st NamespaceStats
	found, err := get(v.snap, nsKey(nil, v.bank.namespace, ns), func(val []byte) error {
		n, err := decodeNamespace(val)
		if err == nil {
			st = NamespaceStats{Keys: n.keys, Bytes: n.bytes, LastModified: n.lastModified}
		}
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: the record of namespace %s is missing", errCorrupt, ns)
	}
	return st, err
}
