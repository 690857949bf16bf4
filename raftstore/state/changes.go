package state

import (
	"encoding/binary"
	"fmt"

	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// recorder makes change records from changes at consecutive revisions.
type recorder struct {
	epoch   kv.Epoch
	hasher  feed.Hasher
	records []kv.Record
	run     []uint64    // hashes of the open run of key changes
	runTo   kv.Revision // its last revision
}

func (r *recorder) add(rev kv.Revision, kind changeKind, ns kv.NamespaceID, key string) {
	switch kind {
	case changePut, changeDelete:
		if len(r.run) == feed.MaxHashes {
			r.closeRun()
		}
		r.run = append(r.run, r.hasher.Key(ns, key))
		r.runTo = rev
		return
	}
	r.closeRun()
	rec := kv.Record{Epoch: r.epoch, Prev: rev - 1, To: rev, Kind: kv.RecordKeys}
	if kind == changeDeleteNamespace {
		rec.Kind, rec.Namespace = kv.RecordNamespace, ns
	}
	r.records = append(r.records, rec)
}

// enter moves on to an epoch that begins at rev.
func (r *recorder) enter(epoch kv.Epoch, rev kv.Revision) {
	r.closeRun() // with the epoch and the hashes of before
	r.epoch, r.hasher = epoch, feed.NewHasher(epoch)
	r.records = append(r.records, kv.Record{Epoch: epoch, To: rev, Kind: kv.RecordAll})
}

// closeRun makes a record of the open run.
func (r *recorder) closeRun() {
	if len(r.run) == 0 {
		return
	}
	r.records = append(r.records, kv.Record{
		Epoch: r.epoch, Prev: r.runTo - kv.Revision(len(r.run)), To: r.runTo, Kind: kv.RecordKeys,
		Hashes: append([]uint64(nil), r.run...),
	})
	r.run = r.run[:0]
}

// Changes reads the change index after a revision, up to max revisions of it, as dense records: (after, …]. It returns
// nothing when after is the newest revision or above it, and ErrTrimmed when the index does not reach back to after.
func (s *State) Changes(after kv.Revision, max int) ([]kv.Record, error) {
	v, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer v.release()
	last := v.applied.Revision
	if max <= 0 || after >= last {
		return nil, nil
	}
	if last-after > kv.Revision(max) {
		last = after + kv.Revision(max)
	}
	rec := recorder{epoch: v.applied.Epoch, hasher: v.control.hasher}
	next := after + 1
	err = scan(v.snap, changeKey(nil, next), changeKey(nil, last+1), func(k, val []byte) (bool, error) {
		if rev := kv.Revision(binary.BigEndian.Uint64(k[spaceBytes:])); rev != next {
			if next == after+1 {
				return false, ErrTrimmed
			}
			return false, fmt.Errorf("%w: the change index jumps from revision %d to %d", errCorrupt, next-1, rev)
		}
		kind, ns, key, err := decodeChange(val)
		if err != nil {
			return false, err
		}
		rec.add(next, kind, ns, key)
		next++
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	if next == after+1 {
		return nil, ErrTrimmed
	}
	rec.closeRun()
	return rec.records, nil
}

// FloorsAfter lists, by id, the namespaces in which something has changed after a revision, each with the revision of its
// last change; deleted ones are among them. Together with at, which is of the same view, they say all that has happened in
// (after, at.Revision]: nothing in any other namespace. ok is false when there are more than max, and the list is nil then.
func (s *State) FloorsAfter(after kv.Revision, max int) (floors []kv.Floor, at Applied, ok bool, err error) {
	v, err := s.acquire()
	if err != nil {
		return nil, Applied{}, false, err
	}
	defer v.release()
	ok = true
	err = scanSpace(v.snap, v.bank.namespace, func(k, val []byte) (bool, error) {
		n, err := decodeNamespace(val)
		if err != nil || n.lastModified <= after {
			return err == nil, err
		}
		if len(floors) >= max {
			floors, ok = nil, false
			return false, nil
		}
		fl := kv.Floor{Revision: n.lastModified}
		if copy(fl.Namespace[:], k[spaceBytes:]) != len(fl.Namespace) {
			return false, fmt.Errorf("%w: namespace key of %d bytes", errCorrupt, len(k))
		}
		floors = append(floors, fl)
		return true, nil
	})
	if err != nil {
		return nil, Applied{}, false, err
	}
	return floors, v.applied, ok, nil
}
