package node

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"time"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// service is what the HTTP surfaces see of a node: the same on voters and edges.
type service struct {
	cache    *cache.Cache
	control  *controlState
	clock    *meshClock
	proposer committer
	blobs    *blobTransfer
	lists    *lister
	hints    spreader
	bulk     *bulkGate
	kek      *seal.KEK
	dir      *directory
	status   func(ctx context.Context) (*api.ClusterStatus, error)
}

var _ api.Service = (*service)(nil)

// committer has operations committed as one batch; see proposer.propose for its errors.
type committer interface {
	propose(ctx context.Context, ops []command.Op) (command.Result, error)
}

// spreader tells the mesh of changes by hints, as far as there is room for them. It does not block.
type spreader interface {
	send(rec kv.Record)
}

// Namespace resolves an id or a title.
func (s *service) Namespace(ctx context.Context, ref string) (kv.Namespace, error) {
	return s.control.namespace(ctx, ref)
}

// Namespaces lists all namespaces by title.
func (s *service) Namespaces(context.Context) ([]kv.Namespace, error) { return s.control.list(), nil }

// MeshTime is the present mesh time.
func (s *service) MeshTime() time.Time { return s.clock.Settled() }

// Cluster describes the mesh as this node sees it.
func (s *service) Cluster(ctx context.Context) (*api.ClusterStatus, error) { return s.status(ctx) }

// Get reads one key from the cache, which fills itself.
func (s *service) Get(ctx context.Context, req api.GetRequest) (*api.Value, error) {
	rd := cache.Read{
		Namespace: req.Namespace.ID, Key: req.Key, Limit: req.CacheTTL,
		Bookmark: req.Consistency.Bookmark, Strong: req.Consistency.Strong,
	}
	if req.Consistency.Bounded {
		rd.Limit, rd.Explicit = min(rd.Limit, req.Consistency.MaxStaleness), true
	}
	ans, err := s.getTimed(ctx, rd, req.Timing)
	if err != nil {
		return nil, err
	}
	e := ans.Entry
	v := &api.Value{
		Absent: e.Absent(), Epoch: e.Epoch(), Revision: e.Revision, AsOf: ans.AsOf,
		Tier: api.Tier(ans.Tier), Staleness: ans.Age, StaleReason: ans.Reason,
	}
	gone := e.Absent()
	if !gone && e.Expiry > 0 {
		if gone, err = s.clock.expired(ctx, e.Expiry); err != nil {
			return nil, err
		}
	}
	if gone {
		v.Absent, v.Revision = true, 0
		return v, nil
	}
	v.Metadata, v.Expiry, v.Size = e.Metadata(), e.Expiry, e.Size()
	if !e.Streamed() {
		v.Bytes = e.Value()
		return v, nil
	}
	v.Open = func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
		return s.openValue(ctx, e, offset, length)
	}
	return v, nil
}

// openValue opens a part of a value that is too large for an entry: from the cache's pool of such values, or as a stream from
// whichever voter has its blob.
func (s *service) openValue(ctx context.Context, e *cache.Entry, offset, length int64) (io.ReadCloser, error) {
	key, err := s.control.dataKey(e.Namespace()) // even for what is in memory: with its namespace a value is gone
	if err != nil {
		return nil, err
	}
	stream := func(offset, length int64) (io.ReadCloser, error) { return s.streamValue(ctx, key, e, offset, length) }
	load := func(ctx context.Context) (io.ReadCloser, error) { return s.streamValue(ctx, key, e, 0, e.Size()) }
	if large := s.cache.Large(cache.LargeKey{Namespace: e.Namespace(), Blob: e.Blob()}, e.Size(), load); large != nil {
		if r, err := large.Open(ctx, offset, length, stream); err == nil {
			return r, nil
		} // the stream may do better, or says what is wrong
	}
	return stream(offset, length)
}

// streamValue streams a part of a large value from whichever voter has its blob.
func (s *service) streamValue(ctx context.Context, key *seal.DataKey, e *cache.Entry, offset, length int64) (io.ReadCloser, error) {
	ns, size, write := e.Namespace(), e.Size(), e.WriteID()
	ref := blob.Ref{Namespace: ns, ID: e.Blob()}
	v, err := s.blobs.openValue(ctx, ref, size, span{offset, length}, func(at int64, sealed func(int64) (io.ReadCloser, error)) (io.ReadCloser, error) {
		return key.OpenReader(ns, e.Key(), write, seal.SealedSize(size), size, at, sealed)
	})
	if errors.Is(err, fs.ErrNotExist) {
		// No voter has it any more: it was replaced longer ago than this node knows. Now it learns of that.
		if _, serr := s.cache.Get(ctx, cache.Read{Namespace: ns, Key: e.Key(), Strong: true}); serr != nil {
			return nil, serr
		}
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}
