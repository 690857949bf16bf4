package command

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"kvmesh/raftstore/kv"
)

// A restore replaces the whole content of a mesh, by commands like any other: KindRestoreBegin opens a staging area beside
// the content, KindRestoreChunk fills it, KindRestoreEnd makes it the content, or drops it. Nobody sees any of it before.

// RestoreID names one restore for ever.
type RestoreID [16]byte

// NewRestoreID returns a random id.
func NewRestoreID() RestoreID {
	var id RestoreID
	_, _ = rand.Read(id[:]) // never fails: it ends the process when the system has no randomness
	return id
}

// Restore is what the three kinds of a restore carry. Which fields count depends on the kind.
type Restore struct {
	ID RestoreID

	// KindRestoreBegin. Replace allows it to take the place of what the mesh holds. A second one of the same restore says
	// that it is still alive.
	Replace bool

	// KindRestoreChunk. Chunks are numbered from 1; they may come in any order within a window of RestoreWindow, and again.
	Seq uint64
	// Records are namespaces and keys as AppendStaged made them. A key's namespace stands in a chunk that was acknowledged
	// before this one was sent, or before it in this one.
	Records []byte

	// KindRestoreEnd. Without Drop: Chunks chunks with Keys keys of Bytes bytes (keys and plaintext values) are the content
	// from now on. Op.Epoch, greater than any before, begins with it; Op.Revision is the highest that it holds.
	Chunks, Keys, Bytes uint64
	// With Drop: what was staged goes, and after a commit what was the content before; up to Op.Limit large values of it,
	// and everything else when none is left. Touched, when it is not 0, must be when a chunk came last: otherwise the
	// restore is still alive.
	Drop    bool
	Touched int64 // unix milliseconds of mesh time
}

// RestoreWindow is how many chunks of a restore may be under way at a time.
const RestoreWindow = 64

// restoreOverhead is the most that a Restore takes beside its records: id, flag, four numbers.
const restoreOverhead = 16 + 1 + 4*binary.MaxVarintLen64

// MaxStagedBytes is the largest KindRestoreChunk.Records that fits into a log entry.
const MaxStagedBytes = kv.MaxBatchBytes - fixedBytes - restoreOverhead - BatchOverhead

// begin   13 | id 16 | 0, or 1 replace
// chunk   14 | id 16 | number uvarint | records
// end     15 | id 16 | 0 | epoch 16 | revision uvarint | chunks uvarint | keys uvarint | bytes uvarint, or
//
//	1 | limit uvarint | touched uvarint
func appendRestore(dst []byte, op *Op) []byte {
	r := op.Restore
	dst = append(dst, r.ID[:]...)
	switch op.Kind {
	case KindRestoreBegin:
		dst = append(dst, flag(r.Replace))
	case KindRestoreChunk:
		dst = binary.AppendUvarint(dst, r.Seq)
		dst = appendBytes(dst, r.Records)
	case KindRestoreEnd:
		dst = append(dst, flag(r.Drop))
		if r.Drop {
			dst = binary.AppendUvarint(dst, uint64(op.Limit))
			return binary.AppendUvarint(dst, uint64(r.Touched))
		}
		dst = append(dst, op.Epoch[:]...)
		for _, n := range []uint64{uint64(op.Revision), r.Chunks, r.Keys, r.Bytes} {
			dst = binary.AppendUvarint(dst, n)
		}
	}
	return dst
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (d *decoder) flag() bool {
	b := d.byte()
	if b > 1 {
		d.fail("flag %d", b)
	}
	return b == 1
}

func (d *decoder) restore(op *Op) {
	r := &Restore{}
	op.Restore = r
	d.fixed(r.ID[:])
	switch op.Kind {
	case KindRestoreBegin:
		r.Replace = d.flag()
	case KindRestoreChunk:
		r.Seq = d.uvarint()
		r.Records = d.bytes()
	case KindRestoreEnd:
		if r.Drop = d.flag(); r.Drop {
			op.Limit = d.limit()
			r.Touched = d.int63()
			return
		}
		d.fixed(op.Epoch[:])
		op.Revision = kv.Revision(d.uvarint())
		r.Chunks, r.Keys, r.Bytes = d.uvarint(), d.uvarint(), d.uvarint()
	}
}

// validateRestore checks what the codec relies on. The records of a chunk are looked at when it is applied.
func (op *Op) validateRestore() error {
	switch r := op.Restore; {
	case r == nil:
		return fmt.Errorf("%w: a restore without its fields", ErrMalformed)
	case op.Kind == KindRestoreChunk && r.Seq == 0:
		return fmt.Errorf("%w: chunks are numbered from 1", ErrMalformed)
	case r.Touched < 0:
		return fmt.Errorf("%w: mesh time %d", ErrMalformed, r.Touched)
	default:
		return limit("chunk", len(r.Records), MaxStagedBytes)
	}
}

// AppendStaged adds a namespace (KindCreateNamespace) or a key (KindPut) to the records of a chunk, with the revision that
// it had.
func AppendStaged(dst []byte, op *Op) []byte {
	return appendOp(binary.AppendUvarint(dst, uint64(op.Revision)), op)
}

// StagedSize is an upper bound of what AppendStaged adds.
func StagedSize(op *Op) int { return binary.MaxVarintLen64 + Size(op) }

// EachStaged calls fn with every record of a chunk, until fn returns an error, which it returns. Metadata, Value and
// WrappedKey alias records. Whatever is no namespace and no unconditional put is an error that wraps ErrMalformed.
func EachStaged(records []byte, fn func(*Op) error) error {
	d := decoder{rest: records}
	for len(d.rest) > 0 {
		rev := d.uvarint()
		var op Op
		d.op(&op)
		if d.err != nil {
			return d.err
		}
		if err := op.Validate(); err != nil {
			return fmt.Errorf("%w: %w", ErrMalformed, err)
		}
		if op.Kind != KindCreateNamespace && (op.Kind != KindPut || op.Cond.Kind != CondNone) {
			return fmt.Errorf("%w: an operation of kind %d in a chunk", ErrMalformed, op.Kind)
		}
		op.Revision = kv.Revision(rev)
		if err := fn(&op); err != nil {
			return err
		}
	}
	return nil
}
