package node

import (
	"context"
	"errors"
	"time"

	"kvmesh/cache"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// answerer answers from a voter's own state, for this node and for others: fills, listings, probes.
type answerer struct {
	store *raftstore.Store
	blobs *blobTransfer
	cache *cache.Cache // of this node: its watermark follows the state, its F is the state's
	clock *meshClock
}

// applyWait is how long an answer waits for the state to have applied what was asked for; the asker's next tier is the
// leader, which has it.
const applyWait = 50 * time.Millisecond

// fill answers a fill from the state. At the tier "store" it is the leader's answer, current after the question arrived;
// else the state is as current as F says, and one that is too old or too far behind is refused.
func (a *answerer) fill(ctx context.Context, args *wire.FillArgs) (wire.FillResult, []byte, error) {
	st := a.store.State()
	if args.Tier == string(cache.TierStore) {
		if _, err := a.store.Confirm(ctx); err != nil {
			return wire.FillResult{}, nil, err
		}
		return a.read(ctx, st, args)
	}
	// F first, then the state, then the clock: each read later than the one before can only make the age larger. The
	// state is waited for up to the W that belongs to F: the feed hears of a commit just before readers see it.
	epoch, w, f, proven := a.cache.Proof()
	if mutVoterNoW {
		w = 0
	}
	if applied := st.Applied(); applied.Epoch != args.Epoch {
		return wire.FillResult{Epoch: applied.Epoch}, nil, nil
	}
	if age := a.cache.Now() - f; !proven || epoch != args.Epoch || age > time.Duration(args.MaxAgeNs) {
		return wire.FillResult{}, nil, kv.Errorf(kv.CodeStaleBeyondLimit, "this voter cannot prove its state to be as current as asked for")
	}
	wait, cancel := context.WithTimeout(ctx, applyWait)
	defer cancel()
	if err := st.WaitRevision(wait, max(args.Least, w)); err != nil {
		return wire.FillResult{}, nil, kv.Errorf(kv.CodeStaleBeyondLimit,
			"this voter's state is at revision %d, %d was asked for", st.Applied().Revision, args.Least)
	}
	res, body, err := a.read(ctx, st, args)
	res.AgeNs = int64(max(a.cache.Now()-f, 0))
	if mutVoterAgeZero {
		res.AgeNs = 0
	}
	return res, body, err
}

// local answers from the state as it is: whether it is current nobody can say.
func (a *answerer) local(ctx context.Context, args *wire.FillArgs) (wire.FillResult, []byte, error) {
	st := a.store.State()
	if applied := st.Applied(); applied.Epoch != args.Epoch || applied.Revision < args.Least {
		return wire.FillResult{}, nil, kv.Errorf(kv.CodeStaleBeyondLimit,
			"this voter's state is at revision %d, %d was asked for", applied.Revision, args.Least)
	}
	return a.read(ctx, st, args)
}

// noticed tells the store of an error of its state: when a file is damaged this node ends, and is repaired. The asker goes
// on to another voter.
func (a *answerer) noticed(err error) error {
	if !errors.Is(err, state.ErrDamaged) {
		return err
	}
	a.store.Noticed(err)
	return &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: damagedRetry,
		Message: "the state of this voter is damaged and will be copied from another one; send it again",
	}
}

// damagedRetry is about what it takes the others to elect a leader, should this voter have been it.
const damagedRetry = time.Second

// read makes an answer of the state's item, with age 0.
func (a *answerer) read(ctx context.Context, st *state.State, args *wire.FillArgs) (wire.FillResult, []byte, error) {
	item, applied, err := st.Get(args.Namespace, args.Key, false)
	if err != nil {
		return wire.FillResult{Epoch: applied.Epoch}, nil, a.noticed(err)
	}
	res := wire.FillResult{Epoch: applied.Epoch, AsOf: applied.Revision, Absent: item.Absent, Revision: item.Revision}
	if args.Have && applied.Epoch == args.Epoch && args.HaveAbsent == item.Absent && args.HaveRev == item.Revision {
		res.NotModified = true
		return res, nil, nil
	}
	res.Expiry, res.Size, res.WriteID, res.Blob, res.Metadata, res.Sealed = item.Expiry, item.Size, item.WriteID, item.Blob, item.Metadata, true
	switch {
	case item.Absent:
		return res, nil, nil
	case item.Blob.IsZero():
		res.HasBody = true
		return res, item.Value, nil
	case item.Size > kv.MaxCachedValueBytes:
		return res, nil, nil
	}
	// A blob that the state names is never "not found".
	body, err := a.blobs.whole(ctx, blob.Ref{Namespace: args.Namespace, ID: item.Blob}, seal.SealedSize(item.Size))
	if err != nil {
		return res, nil, err
	}
	res.HasBody = true
	return res, body, nil
}

// list answers one page from the state, at least as new and as current as asked for.
func (a *answerer) list(ctx context.Context, args *wire.ListArgs) (*wire.ListPage, error) {
	st := a.store.State()
	page := &wire.ListPage{Epoch: st.Applied().Epoch, AgeNs: -1}
	epoch, w, f, proven := a.cache.Proof() // before the state, as for a fill
	if args.Strong {
		if _, err := a.store.Confirm(ctx); err != nil {
			return nil, err
		}
		page.AgeNs = 0
	} else {
		if page.Epoch != args.Epoch && !args.Epoch.IsZero() {
			return page, nil
		}
		proven = proven && epoch == page.Epoch
		if args.MaxAgeNs >= 0 && (!proven || a.cache.Now()-f > time.Duration(args.MaxAgeNs)) {
			return nil, kv.Errorf(kv.CodeStaleBeyondLimit, "this voter cannot prove its state to be as current as asked for")
		}
		wait, cancel := context.WithTimeout(ctx, applyWait)
		defer cancel()
		if err := st.WaitRevision(wait, max(args.Least, w)); err != nil {
			return nil, kv.Errorf(kv.CodeStaleBeyondLimit,
				"this voter's state is at revision %d, %d was asked for", st.Applied().Revision, args.Least)
		}
	}
	res, err := st.List(state.ListQuery{
		Namespace: args.Namespace, Prefix: args.Prefix, Delimiter: args.Delimiter, After: args.After,
		Limit: args.Limit, Values: args.Values, Now: a.clock.Now() / 1000,
	})
	if err != nil {
		return nil, a.noticed(err)
	}
	page.Epoch, page.AsOf = res.Applied.Epoch, res.Applied.Revision
	page.Prefixes, page.Next, page.Complete = res.Prefixes, res.Next, res.Complete
	if !args.Strong && proven {
		page.AgeNs = int64(max(a.cache.Now()-f, 0))
	}
	for _, it := range res.Items {
		page.Items = append(page.Items, wire.ListItem{
			Key: it.Key, Revision: it.Item.Revision, Expiry: it.Item.Expiry, Size: it.Item.Size, WriteID: it.Item.WriteID,
			Metadata: it.Item.Metadata, Value: it.Item.Value, HasValue: it.Item.Value != nil,
		})
	}
	return page, nil
}

// probe says how current this voter is: the leader after confirming that it leads, others by their own F.
func (a *answerer) probe(ctx context.Context, args *wire.ProbeArgs) (wire.ProbeResult, error) {
	if _, self := a.store.Leader(); self {
		if conf, err := a.store.Confirm(ctx); err == nil {
			return wire.ProbeResult{Epoch: conf.Epoch, Revision: conf.Revision, MeshTime: a.clock.Told(), Leader: true}, nil
		}
	}
	return proofOf(a.cache, a.clock)
}
