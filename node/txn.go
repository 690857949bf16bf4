package node

import (
	"context"

	"kvmesh/node/api"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// Txn has a transaction committed as one operation of the log. It is registered, stored, noted as shown and hinted for each
// of its keys, as single writes are.
func (s *service) Txn(ctx context.Context, req api.TxnRequest) (*api.TxnResult, error) {
	op, ps, err := s.prepareTxn(req)
	if err != nil {
		return nil, err
	}
	for _, p := range ps {
		p.begin(s.cache)
	}
	defer func() {
		for _, p := range ps {
			p.abandon()
		}
	}()
	res, err := s.proposer.propose(ctx, []command.Op{op})
	if err != nil {
		return nil, err
	}
	r := res.Ops[0]
	if len(r.Members) != len(op.Members) {
		return nil, refused(&op, r) // as a whole
	}
	for i := range op.Members {
		s.shown(res.Epoch, &op.Members[i], r.Members[i])
	}
	out := &api.TxnResult{Epoch: res.Epoch, Revision: r.Revision, AsOf: r.AsOf}
	if r.Code != "" {
		return out, s.txnRefused(op, r, out)
	}
	hint := newHint(res.Epoch)
	for i, p := range ps {
		m := r.Members[len(req.Compare)+i]
		done, err := p.settle(res.Epoch, m)
		if err != nil {
			return nil, err
		}
		hint.add(&p.op, m.Revision)
		out.Writes = append(out.Writes, done)
	}
	s.hints.send(hint.rec)
	return out, nil
}

// prepareTxn makes the operation of a transaction: the checks first, then the writes, which are given one by one too.
func (s *service) prepareTxn(req api.TxnRequest) (op command.Op, ps []*pending, err error) {
	op.Kind = command.KindTxn
	n := len(req.Compare) + len(req.Writes)
	if n > kv.MaxBatchOps {
		return op, nil, kv.Errorf(kv.CodeTooLarge,
			"the transaction has %d operations; the limit is %d, comparisons, puts and deletes together: split it into smaller ones", n, kv.MaxBatchOps)
	}
	for _, c := range req.Compare {
		m := command.Op{Kind: command.KindCheck, Namespace: c.Namespace.ID, Key: c.Key}
		if m.Cond, err = s.commandCond(c.Cond); err != nil {
			return op, nil, err
		}
		op.Members = append(op.Members, m)
	}
	for _, w := range req.Writes {
		p, err := s.prepare(w)
		if err != nil {
			return op, nil, err
		}
		op.Members, ps = append(op.Members, p.op), append(ps, p)
	}
	if size := command.BatchOverhead + command.Size(&op); size > kv.MaxBatchBytes {
		return op, nil, kv.Errorf(kv.CodeTooLarge,
			"the transaction takes %d bytes of the log; the limit is %d, with keys, metadata and values of up to %d bytes: split it into smaller ones (larger values do not count)",
			size, kv.MaxBatchBytes, kv.MaxInlineValueBytes)
	}
	return op, ps, nil
}

// txnRefused says why a transaction was not carried out: conflicts are put into out, everything else is an error.
func (s *service) txnRefused(op command.Op, r command.OpResult, out *api.TxnResult) error {
	for i, m := range r.Members {
		switch m.Code {
		case "":
		case kv.CodeConditionFailed:
			out.Conflicts = append(out.Conflicts, api.TxnConflict{Index: i, Revision: m.Current})
		default:
			return refused(&op.Members[i], m)
		}
	}
	return nil
}
