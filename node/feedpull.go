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
	// pullPause is the shortest pause between two rounds: what is heard of in it is asked for together. It doubles, up to
	// pullEvery, with every round that brings nothing, because a hint can speak of what nobody has.
	pullPause = 20 * time.Millisecond
	// pullTimeout bounds one such question.
	pullTimeout = 2 * time.Second
)

// pull asks other nodes for records while the feed is cut, so that W goes on without it.
func (f *follower) pull(ctx context.Context) {
	tick := time.NewTicker(pullEvery)
	defer tick.Stop()
	pause := pullPause
	for {
		_, connected := f.depth()
		if connected || f.lag() == 0 {
			select {
			case <-tick.C:
			case <-f.hinted:
			case <-ctx.Done():
				return
			}
			if _, connected = f.depth(); connected {
				continue
			}
		}
		if f.pullRound(ctx) {
			pause = pullPause
		} else {
			pause = min(2*pause, pullEvery)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// pullRound asks the peers of the region, then the voters, until one has something new, and reports whether one had.
func (f *follower) pullRound(ctx context.Context) bool {
	lastResort := ""
	for _, id := range f.dir.PullSources() {
		more, err := f.pullFrom(ctx, id, false)
		switch {
		case err == nil && more:
			return true
		case ctx.Err() != nil:
			return false
		case errors.Is(err, errTooFarBack) && lastResort == "":
			lastResort = id
		}
	}
	if lastResort == "" {
		return false
	}
	more, err := f.pullFrom(ctx, lastResort, true)
	return err == nil && more
}

// pullFrom takes over what one node has, and reports whether that was anything new; anything is wire.PullArgs.Any.
func (f *follower) pullFrom(ctx context.Context, id string, anything bool) (more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	for {
		epoch, w := f.cache.Position()
		reply, err := f.rpc.Call(ctx, id, peer.Call{
			Method: wire.MethodPull, Args: &wire.PullArgs{Epoch: epoch, Revision: w, Any: anything}, Idempotent: true, MaxReply: maxPull,
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
		if res.Epoch == epoch && res.TooFarBack {
			return more, errTooFarBack
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
