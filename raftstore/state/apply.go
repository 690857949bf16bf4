package state

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// maxSlots bounds what the writer remembers of keys between Apply calls; beyond it all is forgotten and read again. A slot
// and its key take about 200 bytes.
const maxSlots = 16 << 10

// Entry is one committed log entry.
type Entry struct {
	Index, Term uint64
	Batch       command.Batch
}

// Apply applies committed entries, in the order of the log, as one atomic write of data, change index and Applied, without
// fsync. Entries at or below Applied.Index have been applied before: they are skipped and their Result is zero. Every
// operation sees the effects of those before it. It keeps no reference to the entries' slices.
//
// An error is fatal for the process: the state then differs from what the log says, and every later Apply fails. An
// operation that this build does not know gives an error that wraps command.ErrUnknown, before anything is applied.
func (s *State) Apply(entries []Entry) ([]command.Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return nil, ErrClosed
	}
	if s.w.failed != nil {
		return nil, fmt.Errorf("an earlier apply failed: %w", s.w.failed)
	}
	results, err := s.apply(s.w, entries)
	if err != nil {
		s.w.failed = err
		return nil, fmt.Errorf("apply: %w", err)
	}
	return results, nil
}

func (s *State) apply(w *writer, entries []Entry) (_ []command.Result, err error) {
	scans, err := survey(entries, w.applied.Index)
	if err != nil {
		return nil, err
	}
	if len(w.slots) > maxSlots {
		clear(w.slots)
	}
	t := &txn{
		w: w, applied: w.applied, allowed: w.allowed, soonest: never, db: w.gen.db,
		rec: recorder{epoch: w.applied.Epoch, hasher: w.control.hasher},
	}
	if scans {
		t.batch = w.gen.db.NewIndexedBatch()
		t.db = t.batch
	} else {
		t.batch = w.gen.db.NewBatch()
	}
	defer func() { err = errors.Join(err, t.batch.Close()) }()

	results := make([]command.Result, len(entries))
	for i := range entries {
		if entries[i].Index <= t.applied.Index && !mutApplyTwice {
			continue
		}
		if results[i], err = t.entry(&entries[i]); err != nil {
			return nil, fmt.Errorf("entry %d: %w", entries[i].Index, err)
		}
	}
	if t.applied.Index == w.applied.Index {
		return results, nil
	}
	if err := t.commit(); err != nil {
		return nil, err
	}
	w.applied, w.allowed = t.applied, t.allowed
	c := Committed{Applied: t.applied, Records: t.rec.records}
	c.Named, c.Released = t.blobChanges()
	if t.controlChanged != 0 {
		w.setControl(t.controlChanged)
		c.Control = &w.control.Control
	}
	s.tell(c)
	s.publish(w)
	s.expiry.added(t.soonest)
	return results, nil
}

// survey looks for operations that this build does not know, before any is applied, and for those that must read what the
// batch has written so far. Only these pay for an indexed batch; keys are looked up in the slots.
func survey(entries []Entry, applied uint64) (scans bool, err error) {
	for i := range entries {
		if entries[i].Index <= applied {
			continue
		}
		for j := range entries[i].Batch.Ops {
			op := &entries[i].Batch.Ops[j]
			if err := op.Validate(); errors.Is(err, command.ErrUnknown) {
				return false, fmt.Errorf("entry %d, operation %d: %w", entries[i].Index, j, err)
			}
			switch op.Kind {
			case command.KindSweep, command.KindDeleteNamespace, command.KindRestoreBegin, command.KindRestoreEnd:
				scans = true
			}
		}
	}
	return scans, nil
}

// txn is one Apply call: its working Applied, and the batch that becomes the state at commit.
type txn struct {
	w       *writer
	batch   *pebble.Batch
	db      reader // the batch when it is indexed, else the database: slots know what the batch holds then
	applied Applied
	allowed command.Kind
	rec     recorder
	// dirty are the live namespaces whose records changed; dropped those deleted in this call.
	dirty   map[kv.NamespaceID]*namespace
	dropped map[kv.NamespaceID]struct{}
	// blobs are the changes to b/ in this call, of the live bank and of the other one: the size of the value, or notNamed.
	blobs, otherBlobs map[blobRef]int64
	// spaceSeq is the sequence number of the last operation that created, renamed or deleted a namespace.
	spaceSeq       map[kv.NamespaceID]uint64
	controlChanged kv.Revision // of the last change of the control state, 0 = none
	soonest        int64       // of the expiries that this call has added to the index
	// staged are the staged namespaces whose records changed; restoring says that m/restore did.
	staged    map[kv.NamespaceID]*namespace
	restoring bool
	key, val  []byte // scratch
}

// entry applies one log entry. An operation's AsOf is the entry's last revision unless a later operation of the entry
// touched its key again, hence the second pass.
func (t *txn) entry(e *Entry) (command.Result, error) {
	t.applied.Index, t.applied.Term = e.Index, e.Term
	t.applied.MeshTime = max(t.applied.MeshTime, e.Batch.MeshTime)

	ops := make([]command.OpResult, len(e.Batch.Ops))
	done := make([]outcome, 0, len(ops))
	for i := range e.Batch.Ops {
		var err error
		op, r := &e.Batch.Ops[i], &ops[i]
		if op.Kind == command.KindTxn {
			if done, err = t.transaction(op, r, done); err != nil {
				return command.Result{}, fmt.Errorf("operation %d: %w", i, err)
			}
			done = append(done, outcome{res: r})
			continue
		}
		t.w.seq++
		d := outcome{res: r, ns: op.Namespace, seq: t.w.seq}
		if *r, d.sl, err = t.op(op, i == 0); err != nil {
			return command.Result{}, fmt.Errorf("operation %d: %w", i, err)
		}
		r.AsOf = t.applied.Revision
		done = append(done, d)
	}
	t.rec.closeRun()
	for _, d := range done {
		again := d.sl != nil && d.sl.seq > d.seq || t.spaceSeq[d.ns] > d.seq
		if !again {
			d.res.AsOf = t.applied.Revision
		}
	}
	return command.Result{Epoch: t.applied.Epoch, MeshTime: t.applied.MeshTime, Revision: t.applied.Revision, Ops: ops}, nil
}

// op applies one operation, and returns the slot of its key if it has one. first says that it is the first of its entry.
func (t *txn) op(op *command.Op, first bool) (command.OpResult, *slot, error) {
	if op.Validate() != nil || t.applied.Cluster.IsZero() != (op.Kind == command.KindInit) {
		return command.OpResult{Code: kv.CodeInternal}, nil, nil
	}
	var r command.OpResult
	var sl *slot
	var err error
	switch op.Kind {
	case command.KindInit:
		r, err = t.init(op)
	case command.KindPut, command.KindDelete:
		r, sl, err = t.write(op)
	case command.KindCreateNamespace:
		r, err = t.createNamespace(op)
	case command.KindRenameNamespace:
		r, err = t.renameNamespace(op)
	case command.KindDeleteNamespace:
		r, err = t.deleteNamespace(op)
	case command.KindSweep:
		r, err = t.sweep(int(min(op.Limit, maxSweep)), op.Expiry)
	case command.KindTrim:
		err = t.trim(op.Revision)
	case command.KindNewEpoch:
		r, err = t.newEpoch(op.Epoch)
	case command.KindRestoreBegin:
		r, err = t.beginRestore(op.Restore)
	case command.KindRestoreChunk:
		r, err = t.stage(op.Restore)
	case command.KindRestoreEnd:
		r, err = t.endRestore(op, first)
	case command.KindAllow:
		err = t.allow(command.Kind(op.Limit))
	default:
		err = fmt.Errorf("%w: operation kind %d", command.ErrUnknown, op.Kind)
	}
	return r, sl, err
}

// change takes the next revision for one change, and writes it into the change index and the records.
func (t *txn) change(kind changeKind, ns kv.NamespaceID, key string) (kv.Revision, error) {
	t.applied.Revision++
	rev := t.applied.Revision
	t.rec.add(rev, kind, ns, key)
	t.key = changeKey(t.key[:0], rev)
	t.val = appendChange(t.val[:0], kind, ns, key)
	return rev, t.batch.Set(t.key, t.val, nil)
}

// touch notes that a namespace's record changes with revision rev.
func (t *txn) touch(id kv.NamespaceID, n *namespace, rev kv.Revision) {
	n.lastModified = rev
	if t.dirty == nil {
		t.dirty = make(map[kv.NamespaceID]*namespace)
	}
	t.dirty[id] = n
}

// commit writes what is written once per call and applies the batch.
func (t *txn) commit() error {
	if err := t.setNamespaces(t.w.bank, t.dirty); err != nil {
		return err
	}
	if err := t.setNamespaces(t.w.bank.other(), t.staged); err != nil {
		return err
	}
	if t.restoring {
		if err := t.batch.Set([]byte(keyRestore), appendRestore(nil, &t.w.restore), nil); err != nil {
			return err
		}
	}
	if t.controlChanged != 0 {
		t.val = appendNumber(t.val[:0], uint64(t.controlChanged))
		if err := t.batch.Set([]byte(keyControlRevision), t.val, nil); err != nil {
			return err
		}
	}
	applied := t.applied
	if mutForgetApplied {
		applied.Index = t.w.applied.Index
	}
	t.val = appendApplied(t.val[:0], &applied)
	if err := t.batch.Set([]byte(keyApplied), t.val, nil); err != nil {
		return err
	}
	return t.batch.Commit(pebble.NoSync)
}

func (t *txn) setNamespaces(b *bank, changed map[kv.NamespaceID]*namespace) error {
	for id, n := range changed {
		t.key = nsKey(t.key[:0], b.namespace, id)
		t.val = appendNamespace(t.val[:0], n)
		if err := t.batch.Set(t.key, t.val, nil); err != nil {
			return err
		}
	}
	return nil
}

// trim drops the change index up to and including rev.
func (t *txn) trim(rev kv.Revision) error {
	rev = min(rev, t.applied.Revision)
	return t.batch.DeleteRange(changeKey(nil, 0), changeKey(nil, rev+1), nil)
}

// newEpoch begins a new history at the next revision. That revision changes no key, and the change index goes up to and
// including it, because what it says is of the old history: Changes would give it as the new one's. The record says that
// anything may have changed since the beginning; whoever followed the old history cannot follow on.
func (t *txn) newEpoch(epoch kv.Epoch) (r command.OpResult, err error) {
	if epoch.Compare(t.applied.Epoch) <= 0 {
		return command.OpResult{Code: kv.CodeInternal}, nil
	}
	t.applied.Revision++
	t.applied.Epoch = epoch
	t.controlChanged = t.applied.Revision
	t.rec.enter(epoch, t.applied.Revision)
	return command.OpResult{Revision: t.applied.Revision}, t.trim(t.applied.Revision)
}

// allow notes that kinds up to k may be proposed. It is no change of anybody's data, and takes no revision.
func (t *txn) allow(k command.Kind) error {
	if k <= t.allowed {
		return nil
	}
	t.allowed = k
	t.val = appendNumber(t.val[:0], uint64(k))
	return t.batch.Set([]byte(keyAllowed), t.val, nil)
}

func sortByTitle(ns []kv.Namespace) {
	slices.SortFunc(ns, func(a, b kv.Namespace) int { return strings.Compare(a.Title, b.Title) })
}
