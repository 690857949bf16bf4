package command

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"kvmesh/raftstore/kv"
)

// codecVersion is the first byte of every log entry.
const codecVersion = 1

// Limits of what is decoded. They guard memory, not policy: the proposer validates, and an entry that is in the log must
// stay readable, so they leave room for what sealing adds (version, key id, nonce, tag).
const (
	// sealOverhead is the most that sealing may add to a small value or to metadata.
	sealOverhead = 1 << 10
	// maxWrappedKeyBytes bounds a wrapped data key, which is an encoded keyset of a few hundred bytes.
	maxWrappedKeyBytes = 16 << 10
	// minOpBytes is the shortest encoding of an operation (KindTrim): kind and one varint.
	minOpBytes = 2
	// BatchOverhead is the most that a batch adds to the sum of its operations' Size.
	BatchOverhead = 1 + 2*binary.MaxVarintLen64
)

var (
	// ErrUnknown is wrapped by errors about a version, a kind of operation or a kind of condition that this build does not
	// know. The state machine must stop on it: whatever follows would be applied to another state than elsewhere.
	ErrUnknown = errors.New("unknown log command")
	// ErrMalformed is wrapped by every other decoding error.
	ErrMalformed = errors.New("malformed log command")
)

// Append encodes b after dst. What Validate accepts, Decode reads back.
//
//	batch   version 1 | mesh time varint | count uvarint | ops
//	init    1 | cluster 16 | epoch 16 | namespace 16 | title | wrapped key
//	put     2 | namespace 16 | key | cond | write id 16 | expiry uvarint | size uvarint | metadata | 0 value, or 1 blob 16
//	delete  3 | namespace 16 | key | cond
//	create  4 | namespace 16 | title | wrapped key
//	rename  5 | namespace 16 | title | wrapped key
//	drop    6 | namespace 16
//	sweep   7 | limit uvarint | from (an expiry) uvarint
//	trim    8 | revision uvarint
//	epoch   9 | epoch 16
//	txn     10 | number of members uvarint | members: put, delete, check
//	allow   12 | kind uvarint
//	check   128 | namespace 16 | key | cond
//	restore 13, 14, 15, see appendRestore
//	cond    kind 1, and for CondRevision: epoch tag 4 | revision uvarint
//
// Keys, titles, metadata, values and wrapped keys are preceded by their length as a uvarint.
func Append(dst []byte, b *Batch) []byte {
	dst = append(dst, codecVersion)
	dst = binary.AppendVarint(dst, b.MeshTime)
	dst = binary.AppendUvarint(dst, uint64(len(b.Ops)))
	for i := range b.Ops {
		dst = appendOp(dst, &b.Ops[i])
	}
	return dst
}

func appendOp(dst []byte, op *Op) []byte {
	dst = append(dst, byte(op.Kind))
	switch op.Kind {
	case KindInit:
		dst = append(dst, op.Cluster[:]...)
		dst = append(dst, op.Epoch[:]...)
		dst = append(dst, op.Namespace[:]...)
		dst = appendBytes(dst, op.Title)
		dst = appendBytes(dst, op.WrappedKey)
	case KindPut:
		dst = append(dst, op.Namespace[:]...)
		dst = appendBytes(dst, op.Key)
		dst = appendCond(dst, op.Cond)
		dst = append(dst, op.WriteID[:]...)
		dst = binary.AppendUvarint(dst, uint64(op.Expiry))
		dst = binary.AppendUvarint(dst, uint64(op.Size))
		dst = appendBytes(dst, op.Metadata)
		if op.Blob.IsZero() {
			dst = appendBytes(append(dst, 0), op.Value)
		} else {
			dst = append(append(dst, 1), op.Blob[:]...)
		}
	case KindDelete, KindCheck:
		dst = append(dst, op.Namespace[:]...)
		dst = appendBytes(dst, op.Key)
		dst = appendCond(dst, op.Cond)
	case KindTxn:
		dst = binary.AppendUvarint(dst, uint64(len(op.Members)))
		for i := range op.Members {
			dst = appendOp(dst, &op.Members[i])
		}
	case KindCreateNamespace, KindRenameNamespace:
		dst = append(dst, op.Namespace[:]...)
		dst = appendBytes(dst, op.Title)
		dst = appendBytes(dst, op.WrappedKey)
	case KindDeleteNamespace:
		dst = append(dst, op.Namespace[:]...)
	case KindSweep:
		dst = binary.AppendUvarint(dst, uint64(op.Limit))
		dst = binary.AppendUvarint(dst, uint64(op.Expiry))
	case KindAllow:
		dst = binary.AppendUvarint(dst, uint64(op.Limit))
	case KindTrim:
		dst = binary.AppendUvarint(dst, uint64(op.Revision))
	case KindNewEpoch:
		dst = append(dst, op.Epoch[:]...)
	case KindRestoreBegin, KindRestoreChunk, KindRestoreEnd:
		dst = appendRestore(dst, op)
	}
	return dst
}

func appendBytes[T string | []byte](dst []byte, b T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(b)))
	return append(dst, b...)
}

func appendCond(dst []byte, c Cond) []byte {
	dst = append(dst, byte(c.Kind))
	if c.Kind == CondRevision {
		dst = append(dst, c.EpochTag[:]...)
		dst = binary.AppendUvarint(dst, uint64(c.Revision))
	}
	return dst
}

// Size is an upper bound of the bytes that op takes in an encoded batch, for filling batches up to kv.MaxBatchBytes. The
// batch itself adds at most BatchOverhead.
func Size(op *Op) int {
	n := fixedBytes + len(op.Key) + len(op.Metadata) + len(op.Value) + len(op.Title) + len(op.WrappedKey)
	for i := range op.Members {
		n += Size(&op.Members[i])
	}
	if op.Restore != nil {
		n += restoreOverhead + len(op.Restore.Records)
	}
	return n
}

// fixedBytes is the fixed part of the largest kind: three ids, five varints, a condition, and two marker bytes.
const fixedBytes = 2 + 3*16 + 5*binary.MaxVarintLen64 + 1 + 4 + binary.MaxVarintLen64

// Validate reports what Decode would refuse in op. The proposer asks before it offers an operation to the log, because an
// entry that cannot be decoded stops every voter.
func (op *Op) Validate() error {
	var err error
	switch op.Kind {
	case KindInit, KindCreateNamespace, KindRenameNamespace:
		err = limit("title", len(op.Title), kv.MaxTitleBytes)
		if err == nil {
			err = limit("wrapped key", len(op.WrappedKey), maxWrappedKeyBytes)
		}
	case KindPut:
		if err = op.validatePut(); err == nil {
			err = op.validateKey()
		}
	case KindDelete:
		err = op.validateKey()
	case KindTxn:
		err = op.validateTxn()
	case KindSweep:
		if op.Expiry < 0 {
			err = fmt.Errorf("%w: expiry %d", ErrMalformed, op.Expiry)
		}
	case KindDeleteNamespace, KindTrim, KindNewEpoch:
	case KindRestoreBegin, KindRestoreChunk, KindRestoreEnd:
		err = op.validateRestore()
	case KindAllow:
		if op.Limit > uint32(Highest) {
			err = fmt.Errorf("%w: kinds up to %d, this build knows them up to %d", ErrUnknown, op.Limit, Highest)
		}
	default: // KindCheck too: it is nothing by itself
		err = fmt.Errorf("%w: operation kind %d", ErrUnknown, op.Kind)
	}
	return err
}

func (op *Op) validateKey() error {
	if op.Key == "" {
		return fmt.Errorf("%w: the key is empty", ErrMalformed)
	}
	if op.Cond.Kind > CondRevision {
		return fmt.Errorf("%w: condition kind %d", ErrUnknown, op.Cond.Kind)
	}
	return limit("key", len(op.Key), kv.MaxKeyBytes)
}

func (op *Op) validatePut() error {
	switch {
	case op.Expiry < 0:
		return fmt.Errorf("%w: expiry %d", ErrMalformed, op.Expiry)
	case op.Size < 0 || op.Size > kv.MaxValueBytes:
		return fmt.Errorf("%w: value size %d", ErrMalformed, op.Size)
	case !op.Blob.IsZero() && len(op.Value) != 0:
		return fmt.Errorf("%w: both a value and a blob", ErrMalformed)
	}
	if err := limit("metadata", len(op.Metadata), kv.MaxMetadataBytes+sealOverhead); err != nil {
		return err
	}
	return limit("value", len(op.Value), kv.MaxInlineValueBytes+sealOverhead)
}

func limit(what string, n, limit int) error {
	if n > limit {
		return fmt.Errorf("%w: %s of %d bytes, the limit is %d", ErrMalformed, what, n, limit)
	}
	return nil
}

// Decode reads one log entry that fills all of b. Metadata, Value, WrappedKey and a chunk's records alias b, which must not
// change while they are in use; empty ones decode as nil. Errors wrap ErrUnknown or ErrMalformed.
func Decode(b []byte) (Batch, error) {
	if len(b) == 0 {
		return Batch{}, fmt.Errorf("%w: empty", ErrMalformed)
	}
	if b[0] != codecVersion {
		return Batch{}, fmt.Errorf("%w: version %d, this build knows %d", ErrUnknown, b[0], codecVersion)
	}
	d := decoder{rest: b[1:]}
	batch := Batch{MeshTime: d.varint()}
	n := d.uvarint()
	if n > kv.MaxBatchOps || n > uint64(len(d.rest)/minOpBytes) {
		return Batch{}, fmt.Errorf("%w: %d operations in %d bytes", ErrMalformed, n, len(d.rest))
	}
	batch.Ops = make([]Op, n)
	weight := 0
	for i := range batch.Ops {
		op := &batch.Ops[i]
		d.op(op)
		if weight += op.Weight(); weight > kv.MaxBatchOps {
			d.fail("more than %d operations, those in transactions counted", kv.MaxBatchOps)
		}
		if d.err == nil {
			d.err = op.Validate()
		}
		if d.err != nil {
			return Batch{}, fmt.Errorf("operation %d: %w", i, d.err)
		}
	}
	if len(d.rest) != 0 {
		return Batch{}, fmt.Errorf("%w: %d bytes left over", ErrMalformed, len(d.rest))
	}
	return batch, d.err
}

// decoder reads fields off the front of rest. After the first error it gives zero values, so that callers check once.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) op(op *Op) {
	op.Kind = Kind(d.byte())
	switch op.Kind {
	case KindInit:
		d.fixed(op.Cluster[:])
		d.fixed(op.Epoch[:])
		d.fixed(op.Namespace[:])
		op.Title = string(d.bytes())
		op.WrappedKey = d.bytes()
	case KindPut:
		d.fixed(op.Namespace[:])
		op.Key = d.key()
		op.Cond = d.cond()
		d.fixed(op.WriteID[:])
		op.Expiry = d.int63()
		op.Size = d.int63()
		op.Metadata = d.bytes()
		switch where := d.byte(); where {
		case 0:
			op.Value = d.bytes()
		case 1:
			if d.fixed(op.Blob[:]); op.Blob.IsZero() {
				d.fail("zero blob id")
			}
		default:
			d.fail("value marker %d", where)
		}
	case KindDelete, KindCheck:
		d.fixed(op.Namespace[:])
		op.Key = d.key()
		op.Cond = d.cond()
	case KindTxn:
		d.members(op)
	case KindCreateNamespace, KindRenameNamespace:
		d.fixed(op.Namespace[:])
		op.Title = string(d.bytes())
		op.WrappedKey = d.bytes()
	case KindDeleteNamespace:
		d.fixed(op.Namespace[:])
	case KindSweep:
		op.Limit = d.limit()
		op.Expiry = d.int63()
	case KindAllow:
		op.Limit = d.limit()
	case KindTrim:
		op.Revision = kv.Revision(d.uvarint())
	case KindNewEpoch:
		d.fixed(op.Epoch[:])
	case KindRestoreBegin, KindRestoreChunk, KindRestoreEnd:
		d.restore(op)
	}
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	d.rest = nil
}

func (d *decoder) byte() byte {
	if len(d.rest) == 0 {
		d.fail("cut short")
		return 0
	}
	v := d.rest[0]
	d.rest = d.rest[1:]
	return v
}

func (d *decoder) fixed(dst []byte) {
	if len(d.rest) < len(dst) {
		d.fail("cut short")
		return
	}
	d.rest = d.rest[copy(dst, d.rest):]
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.rest)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.rest)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.rest = d.rest[n:]
	return v
}

func (d *decoder) int63() int64 {
	v := d.uvarint()
	if v > math.MaxInt64 {
		d.fail("number %d is out of range", v)
		return 0
	}
	return int64(v)
}

func (d *decoder) limit() uint32 {
	n := d.uvarint()
	if n > math.MaxUint32 {
		d.fail("limit %d", n)
	}
	return uint32(n)
}

// bytes returns the next framed field, aliasing the input; nil when it is empty.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.rest)) {
		d.fail("a field of %d bytes, %d are left", n, len(d.rest))
		return nil
	}
	if n == 0 {
		return nil
	}
	v := d.rest[:n:n]
	d.rest = d.rest[n:]
	return v
}

// key checks the length before the copy that makes a string.
func (d *decoder) key() string {
	b := d.bytes()
	if len(b) > kv.MaxKeyBytes {
		d.fail("key of %d bytes, the limit is %d", len(b), kv.MaxKeyBytes)
		return ""
	}
	return string(b)
}

func (d *decoder) cond() Cond {
	c := Cond{Kind: CondKind(d.byte())}
	if d.err != nil {
		return c
	}
	switch c.Kind {
	case CondNone, CondAbsent, CondPresent:
	case CondRevision:
		d.fixed(c.EpochTag[:])
		c.Revision = kv.Revision(d.uvarint())
	default:
		d.err = fmt.Errorf("%w: condition kind %d", ErrUnknown, c.Kind)
		d.rest = nil
	}
	return c
}
