package node

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
)

// bootstrapper begins a new mesh, once: when exactly the expected number of voters see each other and none of them knows
// of a cluster, the one with the smallest id asks each of the others for its consent and then makes all of them the first
// configuration. The others come in through Raft itself. A node that has a cluster, by its disk or by what gossip says,
// never bootstraps.
type bootstrapper struct {
	self   string
	expect int
	gossip *gossip.Gossip
	store  *raftstore.Store
	rpc    *peer.Client
	known  func() bool // this node knows which mesh it belongs to
	log    *slog.Logger

	mu      sync.Mutex // guards the fields below
	granted string     // the candidate that has this node's consent
	until   time.Time
}

const (
	// grantFor is how long a consent binds; longer than any candidate needs between asking and bootstrapping.
	grantFor = 10 * time.Second
	// bootstrapPoll is how often an undecided voter looks again when gossip says nothing new.
	bootstrapPoll = 200 * time.Millisecond
)

// run returns once this node has a Raft configuration, or ctx ends.
func (b *bootstrapper) run(ctx context.Context) {
	told := ""
	for ctx.Err() == nil {
		changed := b.gossip.Changed()
		done, why := b.once(ctx)
		if done {
			return
		}
		if why != told {
			told = why
			b.log.Info("not bootstrapping yet", "why", why)
		}
		select {
		case <-changed:
		case <-time.After(bootstrapPoll):
		case <-ctx.Done():
		}
	}
}

func (b *bootstrapper) once(ctx context.Context) (done bool, why string) {
	if has, err := b.store.Bootstrapped(); err != nil || has {
		return has, fmt.Sprintf("the log could not be read: %v", err)
	}
	if b.known() {
		return false, "this node belongs to a mesh already; waiting for its leader to take it in"
	}
	if b.expect == 0 {
		return false, "waiting for the leader of an existing mesh (no --bootstrap-expect was given)"
	}
	voters, foreign := b.candidates()
	switch {
	case foreign != "":
		return false, "a mesh exists already (" + foreign + "); waiting for its leader to take this voter in"
	case len(voters) < b.expect:
		return false, fmt.Sprintf("%d of %d expected voters found", len(voters), b.expect)
	case len(voters) > b.expect:
		return false, fmt.Sprintf("%d voters found, but --bootstrap-expect is %d; give all voters the same number", len(voters), b.expect)
	case voters[0] != b.self:
		return false, "waiting for voter " + voters[0] + " to bootstrap"
	}
	for _, id := range voters {
		if res := b.ask(ctx, id, voters); !res.Granted {
			return false, fmt.Sprintf("voter %s does not agree: %s", id, res.Reason)
		}
	}
	if err := b.store.Bootstrap(voters); err != nil {
		return false, fmt.Sprintf("bootstrapping failed: %v", err)
	}
	b.log.Info("bootstrapped a new mesh", "voters", voters)
	return true, ""
}

// candidates are the voters that gossip knows, sorted; foreign names a member that belongs to a mesh.
func (b *bootstrapper) candidates() (voters []string, foreign string) {
	for _, m := range b.gossip.Members() {
		if m.Cluster != "" {
			foreign = m.ID
		}
		if m.Role == certs.RoleVoter && (m.Self || m.Reachable()) {
			voters = append(voters, m.ID)
		}
	}
	slices.Sort(voters)
	return voters, foreign
}

func (b *bootstrapper) ask(ctx context.Context, id string, voters []string) wire.GrantResult {
	args := wire.GrantArgs{Candidate: b.self, Voters: voters}
	if id == b.self {
		return b.grant(args)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	reply, err := b.rpc.Call(ctx, id, peer.Call{Method: wire.MethodGrant, Args: &args, Idempotent: true})
	if err != nil {
		return wire.GrantResult{Reason: err.Error()}
	}
	var res wire.GrantResult
	if err := peer.Decode(reply.Result, &res); err != nil {
		return wire.GrantResult{Reason: err.Error()}
	}
	return res
}

// grant decides about a candidate's request. A consent binds for grantFor, so that two candidates with different ideas of
// who the voters are cannot both have it.
func (b *bootstrapper) grant(args wire.GrantArgs) wire.GrantResult {
	refuse := func(format string, a ...any) wire.GrantResult {
		return wire.GrantResult{Reason: fmt.Sprintf(format, a...)}
	}
	if has, err := b.store.Bootstrapped(); err != nil || has || b.known() {
		return refuse("it has a cluster already (%v)", err)
	}
	voters, foreign := b.candidates()
	if foreign != "" {
		return refuse("member %s belongs to a mesh", foreign)
	}
	if !slices.Equal(voters, args.Voters) {
		return refuse("it sees other voters: %v", voters)
	}
	if b.expect != 0 && b.expect != len(args.Voters) {
		return refuse("its --bootstrap-expect is %d", b.expect)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.granted != "" && b.granted != args.Candidate && time.Now().Before(b.until) {
		return refuse("it has agreed to voter %s", b.granted)
	}
	b.granted, b.until = args.Candidate, time.Now().Add(grantFor)
	return wire.GrantResult{Granted: true}
}

// serveGrant answers another voter's request for consent.
func (b *bootstrapper) serveGrant(_ context.Context, req *peer.Request) (*peer.Response, error) {
	var args wire.GrantArgs
	if err := peer.Decode(req.Args, &args); err != nil {
		return nil, err
	}
	res := b.grant(args)
	if req.From.Role != certs.RoleVoter || req.From.NodeID != args.Candidate {
		res = wire.GrantResult{Reason: "only a voter may ask, and only for itself"}
	}
	return &peer.Response{Result: &res}, nil
}
