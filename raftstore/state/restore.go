package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// A restore stages a whole content in the bank that is not live, in chunks, and then makes that bank the live one. Until
// then no reader sees any of it, whoever dies meanwhile; what is left of a restore that came to no end is dropped.
//
//	idle ── begin ──► staging ── end, commit ──► dropping (what was the content before) ── end, drop … ──► idle
//	                     └────── end, drop ────► dropping (what was staged) ─────────────────────────────────┘
//
// Dropping goes in small steps, because each large value has to be put on the list of released ones. A begin takes such a
// step too.

// RestoreIdle is how long a restore may be silent before another may take its place, and the leader drops it, in
// milliseconds of mesh time. Every voter must agree on it, so it never changes without a new kind of command.
const RestoreIdle = 2 * 60 * 1000

// maxDropped bounds the large values that one step of dropping releases. It never changes, like RestoreIdle.
const maxDropped = 4096

// RestorePhase says what the other bank is for.
type RestorePhase byte

// The phases.
const (
	RestoreNone     RestorePhase = 0 // nothing: it is empty
	RestoreStaging  RestorePhase = 1 // it is being filled
	RestoreDropping RestorePhase = 2 // it is being emptied
)

// Restore says where the newest restore stands. Touched is when it was heard of last, in unix milliseconds of mesh time.
type Restore struct {
	ID      command.RestoreID
	Phase   RestorePhase
	Touched int64
}

// Restore tells of the restore under way. It takes no lock.
func (s *State) Restore() Restore {
	r := &s.view.Load().restore
	return Restore{ID: r.id, Phase: r.phase, Touched: r.touched}
}

// restoring is the record m/restore: which bank is live, and what the other one holds.
type restoring struct {
	live    byte
	phase   RestorePhase
	id      command.RestoreID
	replace bool
	next    uint64 // the lowest chunk that has not come; 0 when there is none
	ahead   uint64 // bit i: chunk next+i has come
	touched int64
	// done is the newest restore that was committed, and the revision it took: its commit may come again.
	done    command.RestoreID
	doneRev kv.Revision
}

// appendRestore encodes version 1 | live 1 | phase 1 | id 16 | replace 1 | next 8 | ahead 8 | touched 8 | done 16 | revision 8.
func appendRestore(dst []byte, r *restoring) []byte {
	dst = append(dst, recordVersion, r.live, byte(r.phase))
	dst = append(dst, r.id[:]...)
	replace := byte(0)
	if r.replace {
		replace = 1
	}
	dst = append(dst, replace)
	for _, n := range []uint64{r.next, r.ahead, uint64(r.touched)} {
		dst = binary.BigEndian.AppendUint64(dst, n)
	}
	dst = append(dst, r.done[:]...)
	return binary.BigEndian.AppendUint64(dst, uint64(r.doneRev))
}

func decodeRestore(b []byte) (r restoring, err error) {
	d := fields{rest: b}
	d.version()
	r.live, r.phase = d.byte(), RestorePhase(d.byte())
	copy(r.id[:], d.take(len(r.id)))
	r.replace = d.byte() != 0
	r.next, r.ahead, r.touched = d.uint64(), d.uint64(), int64(d.uint64())
	copy(r.done[:], d.take(len(r.done)))
	r.doneRev = kv.Revision(d.uint64())
	if d.bad || len(d.rest) > 0 || r.live > 1 || r.phase > RestoreDropping {
		return restoring{}, fmt.Errorf("%w: %s of %d bytes", errCorrupt, keyRestore, len(b))
	}
	return r, nil
}

func readRestore(r reader) (rest restoring, err error) {
	_, err = get(r, []byte(keyRestore), func(val []byte) (err error) {
		rest, err = decodeRestore(val)
		return err
	})
	return rest, err
}

// staging is what is known in memory of the namespaces that are staged.
type staging struct {
	spaces map[kv.NamespaceID]*namespace
	titles map[string]kv.NamespaceID
}

// holds counts the keys of the content; data says whether there is anything that a restore would take away: a key, or a
// namespace beside the one that every mesh begins with.
func (w *writer) holds() (keys int64, data bool) {
	for _, n := range w.spaces {
		keys += n.keys
		data = data || n.title != "default"
	}
	return keys, data || keys > 0
}

// beginRestore opens the staging area.
//
// CodeUnavailable: another restore is under way, or what one has left is still being dropped; send it again.
// CodeConditionFailed: the mesh holds data, and the restore must not replace it.
func (t *txn) beginRestore(c *command.Restore) (r command.OpResult, err error) {
	w := t.w
	now := t.applied.MeshTime
	if w.restore.done == c.ID { // it comes late
		return r, nil
	}
	if w.restore.phase == RestoreStaging && w.restore.id == c.ID {
		w.restore.touched, t.restoring = now, true
		return r, nil
	}
	if w.restore.phase == RestoreStaging && now-w.restore.touched < RestoreIdle {
		return command.OpResult{Code: kv.CodeUnavailable}, nil
	}
	if keys, data := w.holds(); data && !c.Replace {
		return command.OpResult{Code: kv.CodeConditionFailed, Current: kv.Revision(keys)}, nil
	}
	if w.restore.phase != RestoreNone {
		if empty, err := t.dropSome(maxDropped); err != nil || !empty {
			return command.OpResult{Code: kv.CodeUnavailable}, err
		}
	}
	w.staged = staging{make(map[kv.NamespaceID]*namespace), make(map[string]kv.NamespaceID)}
	w.restore.phase, w.restore.id, w.restore.replace = RestoreStaging, c.ID, c.Replace
	w.restore.next, w.restore.ahead, w.restore.touched = 1, 0, now
	t.restoring = true
	return r, nil
}

// stage takes one chunk. CodeNotFound: the restore is not under way any more. CodeInternal: the chunk is out of its window,
// or what it holds cannot be read, or does not fit what was staged before.
func (t *txn) stage(c *command.Restore) (r command.OpResult, err error) {
	st := &t.w.restore
	if st.phase != RestoreStaging || st.id != c.ID {
		return command.OpResult{Code: kv.CodeNotFound}, nil
	}
	st.touched, t.restoring = t.applied.MeshTime, true
	at := c.Seq - st.next // of the window; huge when the chunk has come long ago
	switch {
	case c.Seq < st.next || at < command.RestoreWindow && st.ahead&(1<<at) != 0:
		return r, nil // it came before
	case at >= command.RestoreWindow || !t.fits(c.Records):
		return command.OpResult{Code: kv.CodeInternal}, nil
	}
	if err := command.EachStaged(c.Records, t.stageRecord); err != nil {
		return r, err
	}
	st.ahead |= 1 << at
	for st.ahead&1 != 0 {
		st.ahead >>= 1
		st.next++
	}
	return r, nil
}

// fits looks at a chunk before any of it is applied.
func (t *txn) fits(records []byte) bool {
	ids, titles := make(map[kv.NamespaceID]bool), make(map[string]bool)
	err := command.EachStaged(records, func(op *command.Op) error {
		known := ids[op.Namespace] || t.w.staged.spaces[op.Namespace] != nil
		_, taken := t.w.staged.titles[op.Title]
		create := op.Kind == command.KindCreateNamespace
		bad := op.Namespace.IsZero() || taken || titles[op.Title] || kv.ValidateTitle(op.Title) != nil
		if known == create || create && bad {
			return errUnfit
		}
		if create {
			ids[op.Namespace], titles[op.Title] = true, true
		}
		return nil
	})
	return err == nil
}

var errUnfit = fmt.Errorf("%w: it does not fit what was staged before", command.ErrMalformed)

// stageRecord puts one namespace or key into the other bank.
func (t *txn) stageRecord(op *command.Op) error {
	b := t.w.bank.other()
	n := t.w.staged.spaces[op.Namespace]
	if op.Kind == command.KindCreateNamespace {
		n = &namespace{title: op.Title, created: op.Revision, wrapped: bytes.Clone(op.WrappedKey)}
		t.w.staged.spaces[op.Namespace], t.w.staged.titles[op.Title] = n, op.Namespace
		t.key = nsKey(t.key[:0], b.wrappedKey, op.Namespace)
		t.val = append(append(t.val[:0], recordVersion), n.wrapped...)
		if err := t.batch.Set(t.key, t.val, nil); err != nil {
			return err
		}
	} else {
		next := headOf(op, op.Revision)
		if err := t.index(b, op.Namespace, op.Key, head{}, next); err != nil {
			return err
		}
		if err := t.setKey(b, op, next); err != nil {
			return err
		}
		n.keys++
		n.bytes += int64(len(op.Key)) + op.Size
	}
	if t.staged == nil {
		t.staged = make(map[kv.NamespaceID]*namespace)
	}
	t.staged[op.Namespace] = n
	return nil
}

// endRestore commits or drops.
//
// CodeNotFound: the restore is not under way. CodeInternal: not all of it was staged, or the command is not the first of its
// entry. CodeConditionFailed: the mesh holds data, and the restore must not replace it. CodeEpochChanged: the epoch is not
// greater than the present one.
func (t *txn) endRestore(op *command.Op, first bool) (command.OpResult, error) {
	c, st := op.Restore, &t.w.restore
	switch {
	case c.Drop:
		return t.dropRestore(op)
	case st.done == c.ID: // the answer to the first commit was lost
		return command.OpResult{Revision: st.doneRev}, nil
	case st.phase != RestoreStaging || st.id != c.ID:
		return command.OpResult{Code: kv.CodeNotFound}, nil
	}
	var keys, size uint64
	for _, n := range t.w.staged.spaces {
		keys += uint64(n.keys)
		size += uint64(n.bytes)
	}
	whole := st.next == c.Chunks+1 && st.ahead == 0 && keys == c.Keys && size == c.Bytes
	if !first || !whole && !mutRestoreHalf {
		return command.OpResult{Code: kv.CodeInternal}, nil
	}
	if keys, data := t.w.holds(); data && !st.replace && !mutRestoreOverData {
		return command.OpResult{Code: kv.CodeConditionFailed, Current: kv.Revision(keys)}, nil
	}
	if op.Epoch.Compare(t.applied.Epoch) <= 0 {
		return command.OpResult{Code: kv.CodeEpochChanged}, nil
	}
	return t.commitRestore(op)
}

// commitRestore makes the other bank the live one, at a revision above all that either holds. Like newEpoch it begins a
// history; nothing that was said in the one before means anything in it.
func (t *txn) commitRestore(op *command.Op) (command.OpResult, error) {
	w := t.w
	rev := max(t.applied.Revision, op.Revision) + 1
	t.applied.Revision = rev
	if !mutRestoreOldEpoch {
		t.applied.Epoch = op.Epoch
	}

	// What is dropped must be the same on every voter too, as long as it is there.
	if err := t.setNamespaces(w.bank, t.dirty); err != nil {
		return command.OpResult{}, err
	}
	w.bank = w.bank.other()
	w.spaces, w.titles, w.staged = w.staged.spaces, w.staged.titles, staging{}
	clear(w.slots)
	clear(t.dirty)
	clear(t.staged)
	clear(t.dropped)
	t.blobs, t.otherBlobs = nil, merged(t.otherBlobs, t.blobs)
	t.soonest = 0 // of what was staged nothing is known
	for id, n := range w.spaces {
		t.touch(id, n, rev)
	}
	w.restore.live, w.restore.phase = w.bank.number, RestoreDropping
	w.restore.next, w.restore.ahead = 0, 0
	w.restore.done, w.restore.doneRev = w.restore.id, rev
	t.restoring = true

	t.controlChanged = rev
	t.rec.enter(t.applied.Epoch, rev)
	return command.OpResult{Revision: rev}, t.trim(rev)
}

func merged(a, b map[blobRef]int64) map[blobRef]int64 {
	if a == nil {
		return b
	}
	maps.Copy(a, b)
	return a
}

// dropRestore takes one step of dropping. CodeNotFound: there is nothing of this restore to be dropped, or it is alive.
// Current is 1 when more steps are needed.
func (t *txn) dropRestore(op *command.Op) (r command.OpResult, err error) {
	c, st := op.Restore, &t.w.restore
	alive := st.phase == RestoreStaging && c.Touched != 0 && c.Touched != st.touched
	if st.phase == RestoreNone || st.id != c.ID || alive {
		return command.OpResult{Code: kv.CodeNotFound}, nil
	}
	empty, err := t.dropSome(int(min(op.Limit, maxDropped)))
	if err == nil && !empty {
		r.Current = 1
	}
	return r, err
}

// dropSome releases up to limit blobs of the bank that is not live, and empties it when no more are left.
func (t *txn) dropSome(limit int) (empty bool, err error) {
	w := t.w
	b := w.bank.other()
	w.restore.phase, w.staged = RestoreDropping, staging{}
	w.restore.next, w.restore.ahead = 0, 0
	t.restoring = true
	if err := t.setNamespaces(b, t.staged); err != nil {
		return false, err
	}
	clear(t.staged)

	refs, err := t.someBlobs(b, limit)
	if err != nil {
		return false, err
	}
	for _, ref := range refs {
		if err := t.releaseBlob(b, ref.ns, ref.id); err != nil {
			return false, err
		}
	}
	if len(refs) >= limit { // there may be more
		return false, nil
	}
	for _, space := range b.spaces() {
		if err := t.batch.DeleteRange([]byte(space), prefixEnd([]byte(space)), nil); err != nil {
			return false, err
		}
	}
	w.restore.phase = RestoreNone
	return true, nil
}

// someBlobs lists up to limit blobs that a bank names. The batch is indexed, so those named in this call are among them.
func (t *txn) someBlobs(b *bank, limit int) (refs []blobRef, err error) {
	err = scanSpace(t.db, b.blob, func(k, _ []byte) (bool, error) {
		if len(refs) >= limit {
			return false, nil
		}
		var ref blobRef
		if len(k) != spaceBytes+len(ref.ns)+len(ref.id) {
			return false, fmt.Errorf("%w: blob key of %d bytes", errCorrupt, len(k))
		}
		copy(ref.ns[:], k[spaceBytes:])
		copy(ref.id[:], k[spaceBytes+len(ref.ns):])
		refs = append(refs, ref)
		return true, nil
	})
	return refs, err
}
