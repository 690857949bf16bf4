package state

import (
	"fmt"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// init starts the history: cluster, first epoch, and the default namespace, which is like every other from then on.
func (t *txn) init(op *command.Op) (r command.OpResult, err error) {
	if op.Cluster.IsZero() || op.Epoch.IsZero() || op.Namespace.IsZero() {
		return command.OpResult{Code: kv.CodeInternal}, nil
	}
	t.applied.Cluster, t.applied.Epoch = op.Cluster, op.Epoch
	t.rec.epoch, t.rec.hasher = op.Epoch, feed.NewHasher(op.Epoch)
	return t.addNamespace(changeInit, op)
}

func (t *txn) createNamespace(op *command.Op) (r command.OpResult, err error) {
	if op.Namespace.IsZero() {
		return command.OpResult{Code: kv.CodeInternal}, nil
	}
	taken, err := t.namespaceTaken(op.Namespace)
	if err != nil {
		return r, err
	}
	if taken || t.titleTaken(op.Title, op.Namespace) {
		return command.OpResult{Code: kv.CodeNamespaceExists}, nil
	}
	return t.addNamespace(changeCreateNamespace, op)
}

func (t *txn) addNamespace(kind changeKind, op *command.Op) (r command.OpResult, err error) {
	if r.Revision, err = t.change(kind, op.Namespace, ""); err != nil {
		return r, err
	}
	n := &namespace{title: op.Title, created: r.Revision}
	t.w.spaces[op.Namespace], t.w.titles[op.Title] = n, op.Namespace
	return r, t.controlChange(op, n, r.Revision)
}

func (t *txn) renameNamespace(op *command.Op) (r command.OpResult, err error) {
	n, ok := t.w.spaces[op.Namespace]
	if !ok {
		return command.OpResult{Code: kv.CodeNamespaceNotFound}, nil
	}
	if t.titleTaken(op.Title, op.Namespace) {
		return command.OpResult{Code: kv.CodeNamespaceExists}, nil
	}
	if r.Revision, err = t.change(changeRenameNamespace, op.Namespace, ""); err != nil {
		return r, err
	}
	delete(t.w.titles, n.title)
	n.title = op.Title
	t.w.titles[n.title] = op.Namespace
	return r, t.controlChange(op, n, r.Revision)
}

// controlChange writes the wrapped key that came with op, if one did, and notes that the control state changed.
func (t *txn) controlChange(op *command.Op, n *namespace, rev kv.Revision) error {
	t.touch(op.Namespace, n, rev)
	t.noteControl(op.Namespace, rev)
	if len(op.WrappedKey) == 0 {
		return nil
	}
	n.wrapped = append([]byte(nil), op.WrappedKey...)
	t.key = nsKey(t.key[:0], t.w.bank.wrappedKey, op.Namespace)
	t.val = append(append(t.val[:0], recordVersion), n.wrapped...)
	return t.batch.Set(t.key, t.val, nil)
}

func (t *txn) noteControl(ns kv.NamespaceID, rev kv.Revision) {
	t.controlChanged = rev
	if t.spaceSeq == nil {
		t.spaceSeq = make(map[kv.NamespaceID]uint64)
	}
	t.spaceSeq[ns] = t.w.seq
}

// deleteNamespace drops a namespace with two range deletions, however many keys it has. Its data key goes at once, its
// blobs are released, and a tombstone keeps the revision for nodes that catch up. Its entries in the expiry index stay
// until the sweep meets them; its id is never used again.
func (t *txn) deleteNamespace(op *command.Op) (r command.OpResult, err error) {
	ns := op.Namespace
	n, ok := t.w.spaces[ns]
	if !ok {
		return command.OpResult{Code: kv.CodeNamespaceNotFound}, nil
	}
	if r.Revision, err = t.change(changeDeleteNamespace, ns, ""); err != nil {
		return r, err
	}
	b := t.w.bank
	for _, space := range []string{b.head, b.value} {
		from := nsKey(nil, space, ns)
		if err := t.batch.DeleteRange(from, prefixEnd(from), nil); err != nil {
			return r, err
		}
	}
	if err := t.releaseAll(ns); err != nil {
		return r, err
	}
	if err := t.batch.Delete(nsKey(nil, b.wrappedKey, ns), nil); err != nil {
		return r, err
	}
	delete(t.w.titles, n.title)
	delete(t.w.spaces, ns) // its keys' slots are never looked at again
	delete(t.dirty, ns)
	if t.dropped == nil {
		t.dropped = make(map[kv.NamespaceID]struct{})
	}
	t.dropped[ns] = struct{}{}
	t.noteControl(ns, r.Revision)
	tomb := appendNamespace(nil, &namespace{deleted: true, lastModified: r.Revision})
	return r, t.batch.Set(nsKey(nil, b.namespace, ns), tomb, nil)
}

// releaseAll releases the blobs of a namespace. The batch is indexed, so those named in this call are among them.
func (t *txn) releaseAll(ns kv.NamespaceID) error {
	var ids []kv.BlobID
	from := nsKey(nil, t.w.bank.blob, ns)
	err := scan(t.batch, from, prefixEnd(from), func(k, _ []byte) (bool, error) {
		var id kv.BlobID
		if copy(id[:], k[len(from):]) != len(id) {
			return false, fmt.Errorf("%w: blob key of %d bytes", errCorrupt, len(k))
		}
		ids = append(ids, id)
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := t.releaseBlob(t.w.bank, ns, id); err != nil {
			return err
		}
	}
	return nil
}

// titleTaken says whether a title belongs to another namespace, or looks like an id. An id wins over a title wherever
// either is taken, so such a title could hide a namespace for ever.
func (t *txn) titleTaken(title string, self kv.NamespaceID) bool {
	if _, err := kv.ParseNamespaceID(title); err == nil {
		return true
	}
	owner, ok := t.w.titles[title]
	return ok && owner != self
}

// namespaceTaken says whether an id is or was in use.
func (t *txn) namespaceTaken(id kv.NamespaceID) (bool, error) {
	if _, ok := t.w.spaces[id]; ok {
		return true, nil
	}
	if _, ok := t.dropped[id]; ok {
		return true, nil
	}
	return get(t.db, nsKey(nil, t.w.bank.namespace, id), func([]byte) error { return nil })
}
