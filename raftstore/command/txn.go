package command

import (
	"fmt"

	"kvmesh/raftstore/kv"
)

// minMemberBytes is the shortest encoding of a transaction's member (KindCheck): kind, namespace, a key of one byte with its
// length, the kind of condition.
const minMemberBytes = 1 + 16 + 2 + 1

func (op *Op) validateTxn() error {
	if n := len(op.Members); n == 0 || n > kv.MaxBatchOps {
		return fmt.Errorf("%w: a transaction of %d members; it has 1 to %d", ErrMalformed, n, kv.MaxBatchOps)
	}
	for i := range op.Members {
		if err := op.Members[i].validateMember(); err != nil {
			return fmt.Errorf("member %d: %w", i, err)
		}
	}
	return nil
}

func (op *Op) validateMember() error {
	switch op.Kind {
	case KindPut, KindDelete:
		return op.Validate()
	case KindCheck:
		return op.validateKey()
	}
	return fmt.Errorf("%w: operation kind %d in a transaction", ErrUnknown, op.Kind)
}

// members reads a transaction's. A transaction among them is left unread, so that the recursion ends here.
func (d *decoder) members(op *Op) {
	n := d.uvarint()
	if n > kv.MaxBatchOps || n > uint64(len(d.rest)/minMemberBytes) {
		d.fail("%d members in %d bytes", n, len(d.rest))
		return
	}
	if n == 0 {
		return // Validate refuses it
	}
	op.Members = make([]Op, n)
	for i := range op.Members {
		m := &op.Members[i]
		if len(d.rest) > 0 && Kind(d.rest[0]) == KindTxn {
			d.fail("member %d is a transaction", i)
		}
		if d.op(m); d.err != nil {
			return
		}
	}
}
