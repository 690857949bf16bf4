package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

const (
	// statsBatch is how many namespaces are asked for at once.
	statsBatch = 1000
	// statsTimeout bounds the question for the counters of all namespaces: a page that lists them can do without.
	statsTimeout = time.Second
)

// NamespaceStats counts namespaces by the state of the nearest voter, at least as new as anything this node has shown. One
// that the mesh does not know any more is left out.
func (s *service) NamespaceStats(ctx context.Context, ids []kv.NamespaceID) (map[kv.NamespaceID]api.NamespaceStats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	out := make(map[kv.NamespaceID]api.NamespaceStats, len(ids))
	for batch := range slices.Chunk(ids, statsBatch) {
		args := &wire.SpacesArgs{IDs: batch}
		args.Epoch, args.Least = s.cache.LeastForList()
		res, err := s.lists.askSpaces(ctx, args)
		if err != nil {
			return nil, err
		}
		for _, x := range res.Spaces {
			out[x.ID] = api.NamespaceStats{Keys: x.Keys, Bytes: x.Bytes}
		}
	}
	return out, nil
}

// askSpaces goes from the nearest voter to the leader until somebody is new enough.
func (l *lister) askSpaces(ctx context.Context, args *wire.SpacesArgs) (*wire.SpacesResult, error) {
	var targets []string
	if l.local != nil {
		targets = append(targets, l.self)
	}
	voters := l.dir.Voters()
	targets = append(targets, voters[:min(len(voters), 2)]...)
	if leader, _ := l.dir.Leader(); leader != "" && !slices.Contains(targets, leader) {
		targets = append(targets, leader)
	}
	errs := []error{errors.New("no voter could count the namespaces")}
	for _, id := range targets {
		var res *wire.SpacesResult
		var err error
		if id == l.self && l.local != nil {
			res, err = l.local.spaces(ctx, args)
		} else {
			var reply *peer.Reply
			if reply, err = l.rpc.Call(ctx, id, peer.Call{Method: wire.MethodSpaces, Args: args, Idempotent: true}); err == nil {
				res = &wire.SpacesResult{}
				err = peer.Decode(reply.Result, res)
			}
		}
		if err == nil {
			return res, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", id, err))
	}
	return nil, &kv.Error{Code: kv.CodeUnavailable, RetryAfter: time.Second, Message: errors.Join(errs...).Error()}
}

// spaces reads the counters of namespaces from the own state.
func (a *answerer) spaces(ctx context.Context, args *wire.SpacesArgs) (*wire.SpacesResult, error) {
	if len(args.IDs) > statsBatch {
		return nil, kv.Errorf(kv.CodeInvalidParameter, "at most %d namespaces are counted at once", statsBatch)
	}
	st := a.store.State()
	if applied := st.Applied(); applied.Epoch == args.Epoch {
		wait, cancel := context.WithTimeout(ctx, applyWait)
		defer cancel()
		if err := st.WaitRevision(wait, args.Least); err != nil {
			return nil, kv.Errorf(kv.CodeStaleBeyondLimit,
				"this voter's state is at revision %d, %d was asked for", st.Applied().Revision, args.Least)
		}
	} else if applied.Epoch.Compare(args.Epoch) < 0 {
		return nil, kv.Errorf(kv.CodeStaleBeyondLimit, "this voter is in an older epoch")
	}
	res := &wire.SpacesResult{}
	for _, id := range args.IDs {
		stats, err := st.NamespaceStats(id)
		if kv.CodeOf(err) == kv.CodeNamespaceNotFound {
			continue
		}
		if err != nil {
			return nil, a.noticed(err)
		}
		res.Spaces = append(res.Spaces, wire.SpaceStats{ID: id, Keys: stats.Keys, Bytes: stats.Bytes})
	}
	return res, nil
}

func (n *Node) serveSpaces(ctx context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.SpacesArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	res, err := n.answerer.spaces(ctx, &args)
	return &peer.Response{Result: res}, err
}
