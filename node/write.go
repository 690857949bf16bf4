package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"kvmesh/node/api"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Put seals the value, registers the key as in flight, has the write committed, stores the result in the own cache, tells
// the mesh by a hint, and only then answers.
func (s *service) Put(ctx context.Context, req api.PutRequest) (api.WriteResult, error) {
	began := req.Timing.Now()
	v, err := s.stage(ctx, req)
	req.Timing.Since(api.TimingBody, "", began)
	if err != nil {
		return api.WriteResult{}, err
	}
	return s.writeOne(ctx, api.Write{
		Namespace: req.Namespace, Key: req.Key, Value: v, Metadata: req.Metadata, Expiry: req.Expiry, Cond: req.Cond,
	}, req.Timing)
}

// Delete removes one key. Deleting a missing key succeeds and changes nothing.
func (s *service) Delete(ctx context.Context, req api.DeleteRequest) (api.WriteResult, error) {
	return s.writeOne(ctx, api.Write{Namespace: req.Namespace, Key: req.Key, Cond: req.Cond}, req.Timing)
}

func (s *service) writeOne(ctx context.Context, w api.Write, t *api.Timing) (api.WriteResult, error) {
	p, err := s.prepare(w)
	if err != nil {
		return api.WriteResult{}, err
	}
	began := t.Now()
	done := s.carryOut(ctx, []*pending{p})
	t.Since(api.TimingCommit, "", began)
	return done[0].res, done[0].err
}

// commit proposes one operation of the control state and turns its outcome into an error where it is one.
func (s *service) commit(ctx context.Context, op command.Op) (command.Result, command.OpResult, error) {
	res, err := s.proposer.propose(ctx, []command.Op{op})
	if err != nil {
		return res, command.OpResult{}, err
	}
	return res, res.Ops[0], refused(&op, res.Ops[0])
}

// refused is what a client is told of an operation that the state machine did not carry out; nil when it did.
func refused(op *command.Op, r command.OpResult) error {
	switch r.Code {
	case "":
		return nil
	case kv.CodeConditionFailed:
		e := kv.Errorf(r.Code, "the condition does not hold: the key does not exist")
		if r.Current > 0 {
			e = kv.Errorf(r.Code, "the condition does not hold: the key is at revision %d", r.Current)
		}
		e.Revision = r.Current
		return e
	case kv.CodeNamespaceNotFound:
		return kv.FieldErrorf(r.Code, "namespace", "the namespace does not exist any more")
	case kv.CodeNamespaceExists:
		return kv.FieldErrorf(r.Code, "title", "there is a namespace %q already; choose another title", op.Title)
	}
	return kv.Errorf(r.Code, "the store refused the operation")
}

// sealBody reads the value to its end and seals it into op: inline when it is small, else streamed to the voters as a
// blob, so that the operation only carries a pointer. It returns the plaintext when the cache may hold it.
func (s *service) sealBody(ctx context.Context, k *seal.DataKey, op *command.Op, req api.PutRequest) ([]byte, error) {
	body := &boundedBody{r: req.Body, want: req.Size}
	head, err := readUpTo(body, kv.MaxInlineValueBytes+1, req.Size)
	if err != nil {
		return nil, err
	}
	if len(head) <= kv.MaxInlineValueBytes {
		op.Size = int64(len(head))
		op.Value, err = k.Seal(seal.FieldValue, op.Namespace, op.Key, op.WriteID, head)
		return head, err
	}
	op.Blob = kv.NewBlobID()
	keep := &keeper{max: kv.MaxCachedValueBytes, off: req.Size > kv.MaxCachedValueBytes}
	_, _ = keep.Write(head)
	src := io.MultiReader(bytes.NewReader(head), io.TeeReader(body, keep))
	sealed, err := k.SealingReader(op.Namespace, op.Key, op.WriteID, src)
	if err != nil {
		return nil, err
	}
	if err := s.blobs.put(ctx, op.Namespace, op.Blob, sealed); err != nil {
		return nil, err
	}
	op.Size = sealed.PlainSize()
	return keep.bytes(), nil
}

// readUpTo reads at most n bytes. hint sizes the buffer when the length is known.
func readUpTo(r io.Reader, n int64, hint int64) ([]byte, error) {
	size := int64(512)
	if hint >= 0 {
		size = min(hint+1, n)
	}
	buf := bytes.NewBuffer(make([]byte, 0, size))
	_, err := io.CopyN(buf, r, n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return buf.Bytes(), err
}

// boundedBody gives a request's body and refuses one that is too large, or not as long as was said.
type boundedBody struct {
	r    io.Reader
	want int64 // -1 = unknown
	n    int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	switch {
	case b.n > kv.MaxValueBytes:
		return n, kv.FieldErrorf(kv.CodeValueTooLarge, "value",
			"the value has more than %d bytes (25 MiB), which is the limit; split it over several keys", kv.MaxValueBytes)
	case b.want >= 0 && b.n > b.want:
		return n, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is longer than its Content-Length of %d bytes", b.want)
	case errors.Is(err, io.EOF) && b.want >= 0 && b.n < b.want:
		return n, shortBody(b.n, b.want)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, shortBody(b.n, b.want)
	case err != nil && !errors.Is(err, io.EOF) && asKVError(err) == nil:
		return n, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body could not be read after %d bytes: %v", b.n, err)
	}
	return n, err
}

func shortBody(n, want int64) error {
	of := ""
	if want >= 0 {
		of = fmt.Sprintf(" of %d", want)
	}
	return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body ended after %d%s bytes; nothing was stored, send it again", n, of)
}

// keeper keeps what is written to it, until it is too much.
type keeper struct {
	max int
	buf []byte
	off bool
}

func (k *keeper) Write(p []byte) (int, error) {
	if k.off {
		return len(p), nil
	}
	if len(k.buf)+len(p) > k.max {
		k.buf, k.off = nil, true
		return len(p), nil
	}
	k.buf = append(k.buf, p...)
	return len(p), nil
}

func (k *keeper) bytes() []byte {
	if k.off {
		return nil
	}
	return k.buf
}
