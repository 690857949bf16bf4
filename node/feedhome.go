package node

import (
	"context"
	"errors"
	"time"

	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
)

const (
	// homeEvery is how often a node looks for a better source of its feed.
	homeEvery = 10 * time.Second
	// homeFresh is how recent a better source's proof must be, so that nobody leaves one that works for one that is cut off.
	homeFresh = 2 * time.Second
)

// errHome ends a subscription because a better source is there.
var errHome = errors.New("a relay of the region, or a much nearer voter, can feed this node")

// goHome leads a node back to the best source of its feed. It follows another because it began before it knew the others, or
// because the best had failed; without this it would stay there: voters would carry one stream an edge instead of two a
// region, and a region would hear of changes from across an ocean though the voter beside it is back. The better one is
// asked first: one that is silent, or cut off, is no reason to leave.
func (f *follower) goHome(ctx context.Context) {
	tick := time.NewTicker(homeEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		u := f.upstream.Load()
		if u == nil || f.dir.isEdge(u.id) {
			continue
		}
		if sources := f.dir.FeedSources(); len(sources) > 0 && f.dir.Better(sources[0], u.id) && f.isFresh(ctx, sources[0]) {
			u.home.Store(true)
		}
	}
}

// isFresh reports whether a node can prove that it is current.
func (f *follower) isFresh(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeCall)
	defer cancel()
	epoch, _ := f.cache.Position()
	reply, err := f.rpc.Call(ctx, id, peer.Call{Method: wire.MethodProbe, Args: &wire.ProbeArgs{Epoch: epoch}, Idempotent: true})
	if err != nil {
		return false
	}
	var res wire.ProbeResult
	return peer.Decode(reply.Result, &res) == nil && res.Epoch == epoch && time.Duration(res.AgeNs) < homeFresh
}

// isEdge reports whether a node is known to be an edge.
func (d *directory) isEdge(id string) bool {
	m, ok := d.Member(id)
	return ok && m.Role == certs.RoleEdge
}

// Better reports whether a node that follows the voter from should follow id instead: a relay, or a voter less than half as
// far away. Round trips are measured, and vary; nobody moves for less.
func (d *directory) Better(id, from string) bool {
	to, ok := d.Member(id)
	if !ok || id == from {
		return false
	}
	now, ok := d.Member(from)
	return to.Role == certs.RoleEdge || ok && 2*d.distance(to) < d.distance(now)
}
