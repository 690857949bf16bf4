package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"kvmesh/gossip"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/hitpath"
	"kvmesh/node/ops"
	"kvmesh/raftstore/kv"
)

// openHTTP makes the two HTTP servers.
func (n *Node) openHTTP() {
	log := n.component("http")
	n.http = n.openPublic(log)
	n.ops = ops.New(ops.Options{Checks: n.checks(), Auth: n.opts.Token, Metrics: n.reg, Logger: log})
	n.admin = api.NewServer(n.ops, api.ServerOptions{Logger: log})
}

// checks are the conditions of readiness.
func (n *Node) checks() []ops.Check {
	checks := []ops.Check{
		{Name: "joined", Run: func(context.Context) error {
			if j := n.gossip.JoinState(); j.Waiting() {
				var why []string
				refused := slices.ContainsFunc(j.Seeds, func(s gossip.SeedState) bool { return s.Refused })
				if n.standsAlone() && !refused { // a mesh of one, whose seeds are gone
					return nil
				}
				for _, s := range j.Seeds {
					if s.Err != "" {
						why = append(why, s.Err)
					}
				}
				if len(why) == 0 {
					why = []string{"no seed has answered yet"}
				}
				return errors.New(strings.Join(why, "; "))
			}
			return nil
		}},
		{Name: "control", Run: func(context.Context) error {
			if c, _ := n.control.current(); c.Cluster.IsZero() {
				return errors.New("the namespaces of the mesh are not known yet")
			}
			return nil
		}},
		{Name: "current", Run: func(context.Context) error {
			if _, _, _, proven := n.cache.Proof(); !proven || !n.cache.Ready() {
				return errors.New("this node has not been proven current yet: it waits for the leader")
			}
			return nil
		}},
	}
	if n.store != nil {
		checks = append(checks, ops.Check{Name: "member", Run: func(context.Context) error {
			if state, why := n.standing.now(); state == standingRemoved || state == standingJoining {
				return errors.New(why)
			}
			return nil
		}}, ops.Check{Name: "raft", Run: func(context.Context) error {
			if leader, _ := n.store.Leader(); leader == "" {
				return errors.New("no leader is known")
			}
			return nil
		}})
	}
	return checks
}

// standsAlone reports whether this node is a leader without other voters.
func (n *Node) standsAlone() bool {
	if n.store == nil {
		return false
	}
	_, leads := n.store.Leader()
	return leads && len(n.store.Membership().Voters) == 1
}

// Start starts everything and returns; the node becomes ready by itself.
func (n *Node) Start() error {
	n.undo.push("background tasks", func(context.Context) error {
		n.cancel()
		n.tasks.Wait()
		n.blobs.lanes.Wait()
		return nil
	})
	n.serve("peer port", func() error { return n.peers.Serve(n.ctx) })
	if err := n.gossip.Start(context.Background()); err != nil {
		return err
	}
	n.task(n.rememberPeers)
	n.keepCertificate()
	n.task(n.hints.run)
	probe := &prober{
		self: n.id.nodeID, cache: n.cache, dir: n.dir, rpc: n.rpc, clock: n.clock, local: n.answerer, log: n.component("probe"),
		upstream: func() string {
			if u := n.follow.upstream.Load(); u != nil {
				return u.id
			}
			return ""
		},
	}
	if n.opts.Role == certs.RoleEdge {
		n.task(n.follow.run)
		n.task(n.follow.tailLeader)
		n.task(n.follow.pull)
		n.task(n.follow.goHome)
	} else {
		duty := &voterDuty{
			self: n.id.nodeID, store: n.store, dir: n.dir, gossip: n.gossip, rpc: n.rpc, clock: n.clock, wall: n.opts.Env.Wall,
			outside: n.standing.outside, members: n.members, log: n.component("voter"),
		}
		n.task(n.standing.run)
		n.task(func(ctx context.Context) { n.blobs.keeper.Run(ctx, n.store.State()) })
		n.task(n.takeControl)
		n.task(n.followOwn)
		n.task(duty.watchLeader)
		n.task(duty.lead)
		n.task((&infoDuty{self: n.id.nodeID, store: n.store, rpc: n.rpc}).run)
		if n.opts.Role == certs.RoleVoter {
			n.task(n.bootstrap.run)
		}
	}
	n.task(probe.run)
	n.serve("admin listener", func() error { return n.admin.Serve(api.LimitListener(n.adminLn, adminConns())) })
	n.undo.push("admin server", func(context.Context) error { return n.admin.Close() })
	n.serve("http listener", func() error { return n.http.Serve(api.LimitListener(n.httpLn, publicConns())) })
	n.undo.push("http server", n.http.Shutdown)
	n.undo.push("backups", func(context.Context) error { n.leave(); return nil })
	n.undo.push("drain", n.drain)
	n.undo.push("readiness", func(context.Context) error { n.ops.SetDraining(true); return nil })
	n.log.Info("started", "id", n.id.nodeID, "role", n.opts.Role, "region", n.opts.Region,
		"http", n.HTTPURL(), "peer", n.peers.Addr().String(), "gossip", n.gossip.Addr(), "admin", n.adminLn.Addr().String())
	return nil
}

// task runs fn until the node stops.
func (n *Node) task(fn func(context.Context)) { n.tasks.Go(func() { fn(n.ctx) }) }

// serve runs a server until it is closed; ending by itself is fatal.
func (n *Node) serve(name string, fn func() error) {
	n.tasks.Go(func() {
		err := fn()
		if n.ctx.Err() == nil && err != nil && !errors.Is(err, http.ErrServerClosed) {
			n.fail(errors.Join(errors.New(name+" ended"), err))
		}
	})
}

// Stop ends the node in order: not ready, Options.Drain passed, requests drained, leadership handed over, other nodes'
// requests drained, gossip left, everything closed. It goes on to the end when ctx ends, without waiting for what is
// unfinished.
func (n *Node) Stop(ctx context.Context) error {
	at := n.stepOf("http server")
	n.undo.steps = slices.Insert(n.undo.steps, at, teardownStep{"requests of other nodes", n.dismissPeers})
	if n.store != nil {
		n.store.Leaving()
		n.undo.steps = slices.Insert(n.undo.steps, at+1, teardownStep{"leadership", n.handOver})
	}
	return n.undo.run(ctx)
}

// peerDrain bounds how long a node that stops serves what other nodes have asked it.
const peerDrain = 2 * time.Second

// dismissPeers closes the peer port to new requests, which their senders learn, and ends those under way: a write that was
// forwarded here is answered, or goes to the leader that follows, and none has an unknown outcome because this node stops.
func (n *Node) dismissPeers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, peerDrain)
	defer cancel()
	if err := n.peers.Close(ctx); err != nil {
		n.log.Warn("requests of other nodes were cut off", "error", err)
	}
	return nil
}

// Abort gives up the ports, and waits for nothing, so that nobody turns to a node whose process is about to end: one that
// has a thread in a disk that hangs keeps its sockets open until that comes back.
func (n *Node) Abort() {
	_ = n.http.Close() // the process ends
	_ = n.admin.Close()
	n.peers.Abort()
}

// Halt ends a node that must not serve any more: clients are cut off, and nothing is handed over.
func (n *Node) Halt(ctx context.Context) error {
	n.opts.Drain = 0
	return errors.Join(n.http.Close(), n.undo.run(ctx))
}

func (n *Node) stepOf(name string) int {
	i := slices.IndexFunc(n.undo.steps, func(s teardownStep) bool { return s.name == name })
	return max(i, 0)
}

// drain goes on serving for a while after the node has said that it is not ready. net/http, once it shuts down, cuts
// accepted connections whose request it has not begun to read without any answer: whoever follows /readyz must have
// turned away by then.
func (n *Node) drain(ctx context.Context) error {
	n.draining.Store(true)
	if public, ok := n.http.(*hitpath.Server); ok {
		public.Drain()
	}
	if n.opts.Drain <= 0 {
		return nil
	}
	select {
	case <-time.After(n.opts.Drain):
	case <-ctx.Done():
	}
	return nil
}

// untilDrained has clients give their connections up with the first answer that they get while the node drains.
func (n *Node) untilDrained(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.draining.Load() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// handOver gives the leadership to another voter, if there is one.
func (n *Node) handOver(ctx context.Context) error {
	if _, self := n.store.Leader(); !self || len(n.store.Status().Voters) < 2 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := n.store.TransferLeadership(ctx, ""); err != nil { // the others elect one of themselves as well
		n.log.Warn("the leadership could not be handed over", "error", err)
	}
	return nil
}

// Ready reports whether the node serves: nil, or the first reason why not.
func (n *Node) Ready(ctx context.Context) error {
	for _, c := range n.checks() {
		if err := c.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady waits until the node serves.
func (n *Node) WaitReady(ctx context.Context) error {
	for {
		err := n.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// takeControl takes over what the own state machine says of the control state.
func (n *Node) takeControl(ctx context.Context) {
	for {
		select {
		case <-n.committed:
		case <-ctx.Done():
			return
		}
		if c := *n.newControl.Load(); !c.Cluster.IsZero() {
			if err := n.control.take(c); err != nil {
				n.log.Error("the control state cannot be taken over", "error", err)
			}
		}
	}
}

// followOwn keeps a voter's cache at the head of its own state, and while it leads spreads what changed as hints.
func (n *Node) followOwn(ctx context.Context) {
	n.follow.runLocal(ctx, func(rec kv.Record) {
		if _, self := n.store.Leader(); self {
			n.hints.send(rec)
		}
	})
}

// knownPeers are the gossip addresses remembered from the last run.
func (id *identity) knownPeers() ([]string, error) {
	b, err := os.ReadFile(filepath.Join(id.dir, "peers"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var addrs []string
	if err := json.Unmarshal(b, &addrs); err != nil { // the seeds will do
		return nil, nil //nolint:nilerr // a damaged list of addresses is not worth refusing to start
	}
	return addrs, nil
}

// rememberPeers keeps the members' gossip addresses on disk.
func (n *Node) rememberPeers(ctx context.Context) {
	var last []string
	for {
		changed := n.gossip.Changed()
		var addrs []string
		for _, m := range n.gossip.Members() {
			if !m.Self && m.Gossip != "" {
				addrs = append(addrs, m.Gossip)
			}
		}
		slices.Sort(addrs)
		if len(addrs) > 0 && !slices.Equal(addrs, last) {
			b, err := json.Marshal(addrs)
			if err == nil {
				err = n.id.write("peers", b)
			}
			if err != nil {
				n.log.Warn("the members' addresses could not be written", "error", err)
			}
			last = addrs
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		select { // a mesh that forms changes many times at once
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}
