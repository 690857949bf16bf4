package api

import (
	"context"
	"io"
	"iter"
	"strings"

	"kvmesh/raftstore/kv"
)

// fakeStaged is a value that the fake has read.
type fakeStaged struct {
	name   string // namespace title, NUL, key
	value  []byte
	forget bool
}

func (v *fakeStaged) Size() int64 { return int64(len(v.value)) }

func (f *fakeService) Stage(_ context.Context, req StageRequest) (Staged, error) {
	value, err := io.ReadAll(io.LimitReader(req.Body, kv.MaxValueBytes+1))
	defer f.mu.Unlock()
	if stop := f.enter(); stop != nil {
		return nil, stop
	}
	switch {
	case err != nil:
		return nil, err
	case len(value) > kv.MaxValueBytes:
		return nil, valueTooLarge("too many bytes", kv.MaxValueBytes)
	case req.Size >= 0 && req.Size != int64(len(value)):
		return nil, kv.Errorf(kv.CodeInternal, "%d bytes came, %d were announced", len(value), req.Size)
	}
	v := &fakeStaged{req.Namespace.Title + "\x00" + req.Key, value, req.Forget}
	f.staged = append(f.staged, v)
	return v, nil
}

func (f *fakeService) WriteEach(ctx context.Context, writes iter.Seq2[Write, func(WriteResult, error)]) error {
	if f.onWriteEach != nil {
		return f.onWriteEach(ctx, writes)
	}
	for w, told := range writes {
		f.mu.Lock()
		f.calls++
		told(f.write(w))
		f.mu.Unlock()
	}
	return nil
}

// write carries one write out. The caller holds mu.
func (f *fakeService) write(w Write) (WriteResult, error) {
	name := w.Namespace.Title + "\x00" + w.Key
	if err := f.check(name, w.Cond); err != nil {
		return WriteResult{}, err
	}
	f.revision++
	if w.Value == nil {
		_, there := f.keys[name]
		delete(f.keys, name)
		if !there {
			f.revision--
			return WriteResult{Epoch: testEpoch, AsOf: f.revision}, nil
		}
		return WriteResult{Epoch: testEpoch, Revision: f.revision, AsOf: f.revision}, nil
	}
	v := w.Value.(*fakeStaged)
	if v.name != name {
		return WriteResult{}, kv.Errorf(kv.CodeInternal, "the value of %q is written to %q", v.name, name)
	}
	f.keys[name] = stored{v.value, w.Metadata, f.revision, w.Expiry}
	return WriteResult{testEpoch, f.revision, f.revision, w.Expiry}, nil
}

func (f *fakeService) Txn(_ context.Context, req TxnRequest) (*TxnResult, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	f.txns = append(f.txns, req)
	res := &TxnResult{Epoch: testEpoch, AsOf: f.revision}
	for i, c := range req.Compare {
		if c.Cond.Kind == CondRevision {
			c.Cond.Kind, c.Cond.EpochTag = CondETag, [4]byte(testEpoch[12:])
		}
		if err := f.check(c.Namespace.Title+"\x00"+c.Key, c.Cond); err != nil {
			res.Conflicts = append(res.Conflicts, TxnConflict{i, asError(err).Revision})
		}
	}
	if len(res.Conflicts) > 0 {
		return res, nil
	}
	for _, w := range req.Writes {
		r, err := f.write(w)
		if err != nil {
			return nil, err
		}
		res.Writes = append(res.Writes, r)
		res.Revision, res.AsOf = max(res.Revision, r.Revision), f.revision
	}
	return res, nil
}

// has is the value of a key of the namespace "default", "" when there is none.
func (f *fakeService) has(key string) string { return string(f.keys["default\x00"+key].value) }

// names lists the keys of all namespaces, with a slash after the namespace.
func (f *fakeService) names() string {
	var all []string
	for name := range f.keys {
		all = append(all, strings.ReplaceAll(name, "\x00", "/"))
	}
	return sorted(all)
}
