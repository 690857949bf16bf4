package node

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
)

// voterDuty is what a voter does beside answering: it keeps the directory up to date with its Raft, and while it leads it
// agrees on mesh time and looks after the members.
type voterDuty struct {
	self   string
	store  *raftstore.Store
	dir    *directory
	gossip *gossip.Gossip
	rpc    *peer.Client
	clock  *meshClock
	wall   func() time.Time
	// outside says that the own Raft does not know the mesh any more; members is what the leader does about them.
	outside func() bool
	members *memberDuty
	log     *slog.Logger
}

const (
	clockEvery     = 5 * time.Second
	memberEvery    = time.Second
	clockTimeout   = time.Second
	maxClockSpread = 2 * time.Second // a clock read over a longer round trip says too little
)

// watchLeader tells the directory who leads.
func (d *voterDuty) watchLeader(ctx context.Context) {
	tick := time.NewTicker(memberEvery) // the configuration changes without a change of leader
	defer tick.Stop()
	for {
		changed := d.store.LeaderChanged()
		leader, _ := d.store.Leader()
		if leader != "" || !d.outside() {
			d.dir.observed(leader, membersOf(d.store))
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lead runs the leader's duties while this voter leads.
func (d *voterDuty) lead(ctx context.Context) {
	for ctx.Err() == nil {
		changed := d.store.LeaderChanged()
		if _, self := d.store.Leader(); self {
			d.runAsLeader(ctx, changed)
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

func (d *voterDuty) runAsLeader(ctx context.Context, lost <-chan struct{}) {
	clock := time.NewTicker(clockEvery)
	defer clock.Stop()
	members := time.NewTicker(memberEvery)
	defer members.Stop()
	d.agreeOnTime(ctx)
	for {
		select {
		case <-d.clock.Agreed():
		default: // a mesh does not begin before
			d.agreeOnTime(ctx)
		}
		d.members.tend(ctx)
		select {
		case <-clock.C:
			d.agreeOnTime(ctx)
		case <-members.C:
		case <-d.gossip.Changed():
		case <-lost:
			return
		case <-ctx.Done():
			return
		}
	}
}

// agreeOnTime sets mesh time to the median of the voters' clocks, so that one wrong clock moves nothing. Voters that do
// not answer do not count; without a majority the leader goes on with the time it has.
func (d *voterDuty) agreeOnTime(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, clockTimeout)
	defer cancel()
	voters := d.store.Status().Voters
	// The own wall clock is read once: a jump while the others are asked moves nothing.
	began := time.Now()
	wall := d.wall()
	offsets := make(chan time.Duration, len(voters))
	for _, id := range voters {
		if id == d.self {
			offsets <- 0
			continue
		}
		go func() { offsets <- d.offset(ctx, id, wall, began) }()
	}
	var known []time.Duration
	for range voters {
		if o := <-offsets; o != unknownOffset {
			known = append(known, o)
		}
	}
	if len(known) <= len(voters)/2 {
		return
	}
	slices.SortFunc(known, cmp.Compare[time.Duration])
	median := known[(len(known)-1)/2]
	d.clock.Observe(wall.Add(time.Since(began) + median).UnixMilli())
}

const unknownOffset = time.Duration(1<<63 - 1)

// offset is how far another voter's wall clock is ahead of the own one, which showed wall at the moment zero.
func (d *voterDuty) offset(ctx context.Context, id string, wall, zero time.Time) time.Duration {
	began := time.Now()
	reply, err := d.rpc.Call(ctx, id, peer.Call{Method: wire.MethodClock, Idempotent: true})
	trip := time.Since(began)
	if err != nil || trip > maxClockSpread {
		return unknownOffset
	}
	var res wire.ClockResult
	if err := peer.Decode(reply.Result, &res); err != nil {
		return unknownOffset
	}
	return time.Unix(0, res.UnixNano).Sub(wall.Add(began.Sub(zero) + trip/2))
}

func serveClock(wall func() time.Time) peer.HandlerFunc {
	return func(context.Context, *peer.Request) (*peer.Response, error) {
		return &peer.Response{Result: &wire.ClockResult{UnixNano: wall().UnixNano()}}, nil
	}
}
