package node

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/feed"
)

const (
	// pullEvery is how often a node whose feed is cut asks for records.
	pullEvery = 500 * time.Millisecond
	// pullTimeout bounds one such question.
	pullTimeout = 2 * time.Second
)

// pull asks other nodes for records while the feed is cut, so that W goes on without it: a peer of the region first,
// then the voters.
func (f *follower) pull(ctx context.Context) {
	tick := time.NewTicker(pullEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-f.hinted:
		case <-ctx.Done():
			return
		}
		if _, connected := f.depth(); connected {
			continue
		}
		for _, id := range f.dir.PullSources() {
			more, err := f.pullFrom(ctx, id)
			if err == nil && more {
				break
			}
			if ctx.Err() != nil {
				return
			}
		}
	}
}

// pullFrom takes over what one node has, and reports whether that was anything new.
func (f *follower) pullFrom(ctx context.Context, id string) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	for {
		epoch, w := f.cache.Position()
		reply, err := f.rpc.Call(ctx, id, peer.Call{
			Method: wire.MethodPull, Args: &wire.PullArgs{Epoch: epoch, Revision: w}, Idempotent: true, MaxReply: maxPull,
		})
		if err != nil {
			return more, err
		}
		var res wire.PullResult
		if err := peer.Decode(reply.Result, &res); err != nil {
			return more, err
		}
		if res.Epoch.Compare(epoch) > 0 {
			return true, f.begin(res.Epoch, res.Revision)
		}
		if res.Epoch != epoch || res.Revision <= w || len(reply.Body) == 0 {
			return more, nil
		}
		for body := reply.Body; len(body) > 0; {
			if len(body) < 4 || int(binary.BigEndian.Uint32(body)) > len(body)-4 {
				return more, errors.New("the pulled records are cut off")
			}
			n := int(binary.BigEndian.Uint32(body))
			rec, err := feed.Decode(body[4 : 4+n])
			if err == nil {
				err = f.apply(rec)
			}
			if err != nil {
				return more, err
			}
			f.metrics.pulled.Inc()
			body, more = body[4+n:], true
		}
	}
}
