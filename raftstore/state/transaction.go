package state

import (
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// outcome is the result of one operation, or of one member of a transaction, until its AsOf is known at the entry's end.
type outcome struct {
	res *command.OpResult
	ns  kv.NamespaceID
	sl  *slot  // of its key, nil if it has none
	seq uint64 // a change of the key, or of the namespace, by a later one came after this result
}

// transaction applies a transaction: first every member is judged by the state as it is, then, if none has an objection, the
// writes are carried out in their order. They go into the batch of the Apply call like everything else, and that batch
// becomes visible as one. What the members did is appended to done.
func (t *txn) transaction(op *command.Op, r *command.OpResult, done []outcome) ([]outcome, error) {
	if op.Validate() != nil || t.applied.Cluster.IsZero() {
		r.Code = kv.CodeInternal
		return done, nil
	}
	t.w.seq++
	r.Members = make([]command.OpResult, len(op.Members))
	judged := len(done)
	var blobs map[blobRef]struct{}
	for i := range op.Members {
		m, res := &op.Members[i], &r.Members[i]
		sl, err := t.judge(m, res)
		if err != nil {
			return done, err
		}
		if !m.Blob.IsZero() {
			if blobs == nil {
				blobs = make(map[blobRef]struct{})
			}
			ref := blobRef{m.Namespace, m.Blob}
			if _, twice := blobs[ref]; twice && res.Code == "" {
				res.Code = kv.CodeInternal
			}
			blobs[ref] = struct{}{}
		}
		if r.Code == "" {
			r.Code = res.Code
		}
		res.AsOf = t.applied.Revision
		done = append(done, outcome{res, m.Namespace, sl, t.w.seq})
	}
	if r.Code != "" && !mutTxnHalf {
		return done, nil
	}
	for i := range op.Members {
		if m, d := &op.Members[i], &done[judged+i]; m.Kind != command.KindCheck && d.res.Code == "" {
			t.w.seq++
			d.seq = t.w.seq
			if err := t.carryOut(m, d.res, d.sl); err != nil {
				return done, err
			}
			d.res.AsOf = t.applied.Revision
			r.Revision = max(r.Revision, d.res.Revision)
		}
	}
	return done, nil
}

// judge says in r whether op, a put, a delete or a check, may be carried out on the state as it is. It returns the slot of
// its key, nil when the namespace does not exist.
func (t *txn) judge(op *command.Op, r *command.OpResult) (*slot, error) {
	if _, ok := t.w.spaces[op.Namespace]; !ok {
		r.Code = kv.CodeNamespaceNotFound
		return nil, nil
	}
	sl, err := t.slot(op.Namespace, op.Key)
	if err != nil {
		return nil, err
	}
	live := sl.live(t.applied.MeshTime)
	holds := t.holds(op.Cond, sl, live)
	if live && (!holds || op.Kind == command.KindCheck) {
		r.Current = sl.revision
	}
	if !holds {
		r.Code = kv.CodeConditionFailed
		return sl, nil
	}
	if op.Kind == command.KindPut {
		taken, err := t.blobTaken(op, sl)
		if err != nil {
			return nil, err
		}
		if taken {
			r.Code = kv.CodeInternal
		}
	}
	return sl, nil
}

// carryOut applies a put or a delete that judge had no objection to.
func (t *txn) carryOut(op *command.Op, r *command.OpResult, sl *slot) (err error) {
	n := t.w.spaces[op.Namespace]
	if op.Kind == command.KindPut {
		r.Revision, err = t.put(op, n, sl)
		return err
	}
	if sl.live(t.applied.MeshTime) { // an expired key is gone already, for everyone; the sweep takes its revision
		r.Revision, err = t.remove(op.Namespace, n, op.Key, sl)
	}
	return err
}
