package state

import (
	"fmt"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

type slotKey struct {
	ns  kv.NamespaceID
	key string
}

type blobRef struct {
	ns kv.NamespaceID
	id kv.BlobID
}

// slot is the present state of one key as the writer knows it, the open batch included.
type slot struct {
	head
	exists bool
	seq    uint64 // of the last operation that changed it
}

// live says whether the key exists at the given mesh time. A key expires at its expiry second.
func (s *slot) live(meshTime int64) bool { return s.exists && !expired(s.expiry, meshTime/1000) }

// expired judges an expiry in unix seconds, 0 = never.
func expired(expiry, now int64) bool { return expiry != 0 && expiry <= now }

// slot returns the state of a key of a live namespace.
func (t *txn) slot(ns kv.NamespaceID, key string) (*slot, error) {
	if s, ok := t.w.slots[slotKey{ns, key}]; ok {
		return s, nil
	}
	s := &slot{}
	t.key = entryKey(t.key[:0], t.w.bank.head, ns, key)
	var err error
	s.exists, err = get(t.db, t.key, func(val []byte) (err error) {
		s.head, err = decodeHead(val, nil, false)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.w.slots[slotKey{ns, key}] = s
	return s, nil
}

// write applies a put or a delete.
func (t *txn) write(op *command.Op) (r command.OpResult, sl *slot, err error) {
	if sl, err = t.judge(op, &r); err != nil || r.Code != "" {
		return r, sl, err
	}
	err = t.carryOut(op, &r, sl)
	return r, sl, err
}

func (t *txn) holds(c command.Cond, sl *slot, live bool) bool {
	switch c.Kind {
	case command.CondAbsent:
		return !live
	case command.CondPresent:
		return live
	case command.CondRevision:
		return live && sl.revision == c.Revision && [4]byte(t.applied.Epoch[12:]) == c.EpochTag
	}
	return true
}

func (t *txn) put(op *command.Op, n *namespace, sl *slot) (kv.Revision, error) {
	rev, err := t.change(changePut, op.Namespace, op.Key)
	if err != nil {
		return 0, err
	}
	next := headOf(op, rev)
	if err := t.index(t.w.bank, op.Namespace, op.Key, sl.head, next); err != nil {
		return 0, err
	}
	if err := t.setKey(t.w.bank, op, next); err != nil {
		return 0, err
	}
	if sl.exists {
		n.bytes += op.Size - sl.size
	} else {
		n.keys++
		n.bytes += int64(len(op.Key)) + op.Size
	}
	t.touch(op.Namespace, n, rev)
	*sl = slot{head: next, exists: true, seq: t.w.seq}
	return rev, nil
}

// headOf is the head that a put makes.
func headOf(op *command.Op, rev kv.Revision) head {
	return head{
		revision: rev, expiry: op.Expiry, size: op.Size, blob: op.Blob,
		separate: op.Blob.IsZero() && len(op.Value) > inlineBytes,
	}
}

// setKey writes what a put leaves beside the indexes.
func (t *txn) setKey(b *bank, op *command.Op, h head) error {
	t.key = entryKey(t.key[:0], b.head, op.Namespace, op.Key)
	t.val = appendHead(t.val[:0], &kv.Item{
		Revision: h.revision, Expiry: op.Expiry, Size: op.Size, WriteID: op.WriteID,
		Metadata: op.Metadata, Value: op.Value, Blob: op.Blob,
	})
	if err := t.batch.Set(t.key, t.val, nil); err != nil || !h.separate {
		return err
	}
	// The value is copied once.
	d := t.batch.SetDeferred(spaceBytes+len(op.Namespace)+len(op.Key), 1+len(op.Value))
	entryKey(d.Key[:0], b.value, op.Namespace, op.Key)
	d.Value[0] = recordVersion
	copy(d.Value[1:], op.Value)
	return d.Finish()
}

// remove deletes a key that exists, expired or not.
func (t *txn) remove(ns kv.NamespaceID, n *namespace, key string, sl *slot) (kv.Revision, error) {
	rev, err := t.change(changeDelete, ns, key)
	if err != nil {
		return 0, err
	}
	if err := t.index(t.w.bank, ns, key, sl.head, head{}); err != nil {
		return 0, err
	}
	t.key = entryKey(t.key[:0], t.w.bank.head, ns, key)
	if err := t.batch.Delete(t.key, nil); err != nil {
		return 0, err
	}
	n.keys--
	n.bytes -= int64(len(key)) + sl.size
	t.touch(ns, n, rev)
	*sl = slot{seq: t.w.seq}
	return rev, nil
}

// index moves everything that hangs on a key's head from old to next: the expiry index, the separate value (whose new one
// put writes), and the blob.
func (t *txn) index(b *bank, ns kv.NamespaceID, key string, old, next head) error {
	if old.expiry != next.expiry {
		if old.expiry != 0 {
			t.key = b.expiryKey(t.key[:0], old.expiry, ns, key)
			if err := t.batch.Delete(t.key, nil); err != nil {
				return err
			}
		}
		if next.expiry != 0 {
			t.soonest = min(t.soonest, next.expiry)
			t.key = b.expiryKey(t.key[:0], next.expiry, ns, key)
			if err := t.batch.Set(t.key, []byte{recordVersion}, nil); err != nil {
				return err
			}
		}
	}
	if old.separate && !next.separate {
		t.key = entryKey(t.key[:0], b.value, ns, key)
		if err := t.batch.Delete(t.key, nil); err != nil {
			return err
		}
	}
	if old.blob == next.blob {
		return nil
	}
	if !old.blob.IsZero() {
		if err := t.releaseBlob(b, ns, old.blob); err != nil {
			return err
		}
	}
	if !next.blob.IsZero() {
		return t.nameBlob(b, ns, next.blob, next.size)
	}
	return nil
}

// nameBlob notes that the state names a blob. One that was released before is wanted again.
func (t *txn) nameBlob(b *bank, ns kv.NamespaceID, id kv.BlobID, size int64) error {
	t.noteBlob(b, ns, id, size)
	t.key = b.blobKey(t.key[:0], ns, id)
	t.val = appendNumber(t.val[:0], uint64(size))
	if err := t.batch.Set(t.key, t.val, nil); err != nil {
		return err
	}
	t.key = releasedKey(t.key[:0], id)
	return t.batch.Delete(t.key, nil)
}

// releaseBlob notes that the state no longer names a blob, so that its file can go.
func (t *txn) releaseBlob(b *bank, ns kv.NamespaceID, id kv.BlobID) error {
	t.noteBlob(b, ns, id, notNamed)
	t.key = b.blobKey(t.key[:0], ns, id)
	if err := t.batch.Delete(t.key, nil); err != nil {
		return err
	}
	t.key = releasedKey(t.key[:0], id)
	t.val = appendReleased(t.val[:0], ns, t.applied.MeshTime)
	return t.batch.Set(t.key, t.val, nil)
}

// notNamed stands for the size of a blob that the state no longer names.
const notNamed = -1

// noteBlob remembers what the batch holds, for blobTaken and for the observer. What is staged takes no part in the former, or
// the outcome of an operation would depend on how entries are grouped.
func (t *txn) noteBlob(b *bank, ns kv.NamespaceID, id kv.BlobID, size int64) {
	blobs := &t.blobs
	if b != t.w.bank {
		blobs = &t.otherBlobs
	}
	if *blobs == nil {
		*blobs = make(map[blobRef]int64)
	}
	(*blobs)[blobRef{ns, id}] = size
}

// blobChanges lists the blobs that this call has named and released, as they stand at its end.
func (t *txn) blobChanges() (named, released []Blob) {
	for _, blobs := range []map[blobRef]int64{t.blobs, t.otherBlobs} {
		for r, size := range blobs {
			if size == notNamed {
				released = append(released, Blob{Namespace: r.ns, ID: r.id})
			} else {
				named = append(named, Blob{Namespace: r.ns, ID: r.id, Size: size})
			}
		}
	}
	return named, released
}

// blobTaken says whether op's blob is named by another key of the namespace. Blob ids are unique per write, so no honest proposer asks for
// it; were it allowed, replacing one of the two keys would delete the value of the other.
func (t *txn) blobTaken(op *command.Op, sl *slot) (bool, error) {
	if op.Blob.IsZero() || op.Blob == sl.blob {
		return false, nil
	}
	if size, ok := t.blobs[blobRef{op.Namespace, op.Blob}]; ok {
		return size != notNamed, nil
	}
	t.key = t.w.bank.blobKey(t.key[:0], op.Namespace, op.Blob)
	return get(t.db, t.key, func([]byte) error { return nil })
}

// maxSweep bounds one sweep. Every voter must agree on it, so it never changes without a new kind of command.
const maxSweep = 4096

// sweep deletes up to limit keys that have expired, at or after the moment since, in the order of their expiry. Entries that
// a deleted namespace left in the index count like keys, and take no revision.
func (t *txn) sweep(limit int, since int64) (r command.OpResult, err error) {
	if limit == 0 || t.applied.MeshTime < 1000 || since > t.applied.MeshTime/1000 {
		return r, nil
	}
	type due struct {
		ns  kv.NamespaceID
		key string
		x   []byte
	}
	var found []due
	b := t.w.bank
	from, to := b.expiryKey(nil, since, kv.NamespaceID{}, ""), b.expiryKey(nil, t.applied.MeshTime/1000+1, kv.NamespaceID{}, "")
	err = scan(t.batch, from, to, func(k, _ []byte) (bool, error) {
		_, ns, key, ok := splitExpiryKey(k)
		if !ok {
			return false, fmt.Errorf("%w: expiry index key of %d bytes", errCorrupt, len(k))
		}
		found = append(found, due{ns, key, append([]byte(nil), k...)})
		return len(found) < limit, nil
	})
	if err != nil {
		return r, err
	}
	for _, d := range found {
		n, ok := t.w.spaces[d.ns]
		if !ok {
			if err := t.batch.Delete(d.x, nil); err != nil {
				return r, err
			}
			continue
		}
		sl, err := t.slot(d.ns, d.key)
		if err != nil {
			return r, err
		}
		if sl.live(t.applied.MeshTime) || !sl.exists {
			return r, fmt.Errorf("%w: the expiry index and the head of a key disagree", errCorrupt)
		}
		if r.Revision, err = t.remove(d.ns, n, d.key, sl); err != nil {
			return r, err
		}
	}
	return r, nil
}
