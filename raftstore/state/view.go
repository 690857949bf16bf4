package state

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// control is the control state with what readers derive from it. It is immutable and shared by views until it changes.
type control struct {
	kv.Control
	live   map[kv.NamespaceID]struct{}
	hasher feed.Hasher
}

// view is the state at one Applied: a snapshot of the generation's database, with a count of its users. A read acquires the
// newest view, works on nothing else, and releases it, so it never sees a mix of two commits or of two generations.
type view struct {
	gen     *generation
	snap    *pebble.Snapshot
	bank    *bank
	applied Applied
	allowed command.Kind
	control *control
	restore restoring
	closed  bool

	// refs counts the users, one of which is State.view. Once 0 it stays 0.
	refs atomic.Int64
}

func newView(w *writer) *view {
	w.gen.views.Add(1)
	v := &view{
		gen: w.gen, snap: w.gen.db.NewSnapshot(), bank: w.bank, applied: w.applied, allowed: w.allowed, control: w.control, restore: w.restore,
	}
	v.refs.Store(1)
	return v
}

// acquire returns the newest view; the caller releases it.
//
// Interleaving: between Load and the increment the view may have lost its last reference. refs is 0 then and never rises
// again, and publish stores the next view before it releases the old one, so the second Load finds another.
func (s *State) acquire() (*view, error) {
	for {
		v := s.view.Load()
		if v.closed {
			return nil, ErrClosed
		}
		for n := v.refs.Load(); n > 0; n = v.refs.Load() {
			if v.refs.CompareAndSwap(n, n+1) {
				return v, nil
			}
		}
	}
}

func (v *view) release() {
	if v.refs.Add(-1) > 0 {
		return
	}
	if err := v.snap.Close(); err != nil {
		v.gen.failed.CompareAndSwap(nil, &err)
	}
	v.gen.done()
}

// namespace says whether ns is known in this view.
func (v *view) namespace(ns kv.NamespaceID) error {
	if _, ok := v.control.live[ns]; !ok {
		return kv.Errorf(kv.CodeNamespaceNotFound, "there is no namespace %s", ns)
	}
	return nil
}

// reader is what point reads need; a database, a snapshot and an indexed batch are readers.
type reader interface {
	pebble.Reader
}

// get calls fn with the value of key, which is valid during the call only. It reports whether the key exists.
func get(r reader, key []byte, fn func(val []byte) error) (found bool, err error) {
	defer recovered(&err)
	val, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %q: %w", key, asDamage(err))
	}
	ferr := fn(val)
	return true, errors.Join(ferr, closer.Close())
}

// scan calls fn with every key in [from, to) and its value, which are valid during the call only, until fn returns false.
func scan(r reader, from, to []byte, fn func(key, val []byte) (bool, error)) (err error) {
	defer func() { err = asDamage(err) }()
	defer recovered(&err)
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		val, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(fmt.Errorf("scan: %w", err), it.Close())
		}
		if more, err := fn(it.Key(), val); err != nil || !more {
			return errors.Join(err, it.Close())
		}
	}
	return errors.Join(it.Error(), it.Close())
}

func scanSpace(r reader, prefix string, fn func(key, val []byte) (bool, error)) error {
	return scan(r, []byte(prefix), prefixEnd([]byte(prefix)), fn)
}
