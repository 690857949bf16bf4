package node

import (
	"context"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// staged is a sealed value: the operation that will write it, still without metadata, expiry and condition.
type staged struct {
	op    command.Op
	value []byte // in plaintext, when the cache may hold it
}

// Size is the number of the value's bytes.
func (v *staged) Size() int64 { return v.op.Size }

// Stage reads and seals one value.
func (s *service) Stage(ctx context.Context, req api.StageRequest) (api.Staged, error) {
	v, err := s.stage(ctx, api.PutRequest{Namespace: req.Namespace, Key: req.Key, Body: req.Body, Size: req.Size})
	if err != nil {
		return nil, err // not a nil *staged in an interface
	}
	if req.Forget {
		v.value = nil
	}
	return v, nil
}

func (s *service) stage(ctx context.Context, req api.PutRequest) (*staged, error) {
	dataKey, err := s.control.dataKey(req.Namespace.ID)
	if err != nil {
		return nil, err
	}
	v := &staged{op: command.Op{Kind: command.KindPut, Namespace: req.Namespace.ID, Key: req.Key, WriteID: kv.NewWriteID()}}
	if v.value, err = s.sealBody(ctx, dataKey, &v.op, req); err != nil {
		return nil, err
	}
	return v, nil
}

// pending is a write that only has to be committed.
type pending struct {
	op              command.Op
	metadata, value []byte       // in plaintext, for the own cache; a forgotten value is nil
	reg             *cache.Write // while it is in flight
}

// prepare makes the operation of a write.
func (s *service) prepare(w api.Write) (*pending, error) {
	cond, err := s.commandCond(w.Cond)
	if err != nil {
		return nil, err
	}
	if w.Value == nil {
		return &pending{op: command.Op{Kind: command.KindDelete, Namespace: w.Namespace.ID, Key: w.Key, Cond: cond}}, nil
	}
	v, ok := w.Value.(*staged)
	if !ok || v.op.Namespace != w.Namespace.ID || v.op.Key != w.Key {
		return nil, kv.Errorf(kv.CodeInternal, "the value was sealed for another key than it is written to")
	}
	p := &pending{op: v.op, metadata: w.Metadata, value: v.value}
	p.op.Expiry, p.op.Cond = w.Expiry, cond
	if w.Metadata == nil {
		return p, nil
	}
	dataKey, err := s.control.dataKey(w.Namespace.ID)
	if err != nil {
		return nil, err
	}
	p.op.Metadata, err = dataKey.Seal(seal.FieldMetadata, p.op.Namespace, p.op.Key, p.op.WriteID, w.Metadata)
	return p, err
}

func (s *service) commandCond(c api.Cond) (command.Cond, error) {
	out := command.Cond{EpochTag: c.EpochTag, Revision: c.Revision}
	switch c.Kind {
	case api.CondNone:
		out.Kind = command.CondNone
	case api.CondAbsent:
		out.Kind = command.CondAbsent
	case api.CondPresent:
		out.Kind = command.CondPresent
	case api.CondETag:
		out.Kind = command.CondRevision
	case api.CondRevision:
		epoch, _ := s.cache.Position()
		if epoch.IsZero() {
			return out, kv.Errorf(kv.CodeUnavailable, "this node has just started and does not know yet in which history the mesh is; retry")
		}
		out.Kind, out.EpochTag = command.CondRevision, [4]byte(epoch[12:])
	}
	return out, nil
}

// bytes is the memory that a pending write takes.
func (p *pending) bytes() int { return command.Size(&p.op) + len(p.metadata) + len(p.value) }

// begin registers the key as in flight (I3). It comes before the write is proposed; settle or abandon must follow.
func (p *pending) begin(c *cache.Cache) { p.reg = c.BeginWrite(p.op.Namespace, p.op.Key) }

// abandon ends the registration of a write that was not carried out, or whose outcome is unknown.
func (p *pending) abandon() {
	if p.reg != nil {
		p.reg.Abandon()
	}
}

// settle stores the result of a committed write in the own cache (I3), and returns what its client is told. A value of
// which the plaintext is gone is not stored, but later reads are not older than it (I7).
func (p *pending) settle(epoch kv.Epoch, r command.OpResult) (api.WriteResult, error) {
	told := api.WriteResult{Epoch: epoch, Revision: r.Revision, AsOf: r.AsOf, Expiry: p.op.Expiry}
	if p.op.Kind == command.KindPut && p.value == nil && p.op.Size <= kv.MaxCachedValueBytes {
		return told, p.reg.Forget(epoch, r.Revision)
	}
	e := cache.State{Epoch: epoch, AsOf: r.AsOf, Absent: true}
	if p.op.Kind == command.KindPut {
		e = cache.State{
			Epoch: epoch, Revision: r.Revision, AsOf: r.AsOf, Expiry: p.op.Expiry, Size: p.op.Size,
			WriteID: p.op.WriteID, Blob: p.op.Blob, Metadata: p.metadata, Value: p.value,
		}
	}
	if err := p.reg.Done(e); err != nil {
		return api.WriteResult{}, err
	}
	return told, nil
}

// written is what became of a pending write.
type written struct {
	res api.WriteResult
	err error
}

// carryOut has writes committed as one part of one log entry, each with an outcome of its own: all are registered as in
// flight, proposed, stored in the own cache as far as they were carried out, and told to the mesh by a hint.
func (s *service) carryOut(ctx context.Context, ps []*pending) []written {
	out := make([]written, len(ps))
	ops := make([]command.Op, len(ps))
	for i, p := range ps {
		ops[i] = p.op
		p.begin(s.cache)
	}
	defer func() {
		for _, p := range ps {
			p.abandon()
		}
	}()
	res, err := s.proposer.propose(ctx, ops)
	if err != nil {
		for i := range out {
			out[i].err = err
		}
		return out
	}
	hint := newHint(res.Epoch)
	for i, p := range ps {
		r := res.Ops[i]
		if out[i].err = refused(&p.op, r); out[i].err != nil {
			s.shown(res.Epoch, &p.op, r)
			continue
		}
		if out[i].res, out[i].err = p.settle(res.Epoch, r); out[i].err == nil {
			hint.add(&p.op, r.Revision)
		}
	}
	s.hints.send(hint.rec)
	return out
}

// shown notes that a client is told what a condition has met (I7): the present state, or, of an absence, the state that was
// looked at. Later reads here are not older.
func (s *service) shown(epoch kv.Epoch, op *command.Op, r command.OpResult) {
	if r.Code != kv.CodeConditionFailed && op.Kind != command.KindCheck || mutTxnNotShown {
		return
	}
	rev := r.Current
	if rev == 0 {
		rev = r.AsOf
	}
	s.cache.Shown(epoch, op.Namespace, op.Key, rev)
}

// hint is the change record of some writes that follow each other in one log entry, so that their revisions are dense.
type hint struct {
	rec    kv.Record
	hasher feed.Hasher
}

func newHint(epoch kv.Epoch) *hint {
	return &hint{rec: kv.Record{Epoch: epoch, Kind: kv.RecordKeys}, hasher: feed.NewHasher(epoch)}
}

// add takes a change; revision 0 is none.
func (h *hint) add(op *command.Op, rev kv.Revision) {
	if rev == 0 {
		return
	}
	if len(h.rec.Hashes) == 0 {
		h.rec.Prev = rev - 1
	}
	h.rec.To = rev
	h.rec.Hashes = append(h.rec.Hashes, h.hasher.Key(op.Namespace, op.Key))
}
