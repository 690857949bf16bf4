package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/ops"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

const (
	// standingRepairing is the standing of a voter or learner whose files are damaged: it takes no part in the central store.
	standingRepairing = "repairing"
	// repairPause and repairPauseMax are the pauses between two attempts: the others may be down or without a leader.
	repairPause    = time.Second
	repairPauseMax = 10 * time.Second
)

// Damaged reports whether err says that files of a voter's or learner's data directory are damaged, which Repair can mend.
func Damaged(err error) bool {
	var d *raftstore.Damage
	return errors.As(err, &d)
}

// errAlone says that nobody can help.
var errAlone = errors.New("no other node is known that could help")

// Repair makes a data directory whole again that New has refused, or a running node has found, as Damaged. It gets what is
// damaged from the other voters, and tries until it has it or ctx ends. Meanwhile the node can be seen by the others, and
// says on /readyz and to clients why it does not serve. The node must not run; its ports must be free.
func Repair(ctx context.Context, opts Options) (err error) {
	n := newNode(opts)
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), repairPauseMax)
		defer cancel()
		err = errors.Join(err, n.undo.run(stop))
		n.cancel()
	}()
	if err := n.openDirectory(); err != nil {
		return err
	}
	if n.opts.Role == certs.RoleEdge {
		return fmt.Errorf("the data directory %s belongs to an edge, which has nothing that others could give it", n.opts.DataDir)
	}
	r := &repair{n: n}
	r.say("its files are damaged; it looks for a voter that can give it what it needs")
	if err := r.open(); err != nil {
		return err
	}
	return r.run(ctx)
}

// repair is one repair under way.
type repair struct {
	n   *Node
	why atomic.Pointer[string]
}

func (r *repair) say(why string) { r.why.Store(&why) }

// open opens the ports, and starts what the others see of this node.
func (r *repair) open() error {
	n := r.n
	if err := n.openListeners(); err != nil {
		return err
	}
	if err := n.openMesh(func([]byte) {}); err != nil {
		return err
	}
	mux := peer.NewMux(peer.MuxOptions{Logger: n.component("rpc"), Metrics: n.reg})
	mux.Handle(wire.MethodStatus, "status", func(context.Context, *peer.Request) (*peer.Response, error) {
		return &peer.Response{Result: r.status()}, nil
	})
	n.peers.Handle(peer.ALPNRPC, anyMember, mux.Serve)
	log := n.component("http")
	n.http = api.NewServer(http.HandlerFunc(r.sorry), api.ServerOptions{Logger: log})
	n.ops = ops.New(ops.Options{
		Checks: []ops.Check{{Name: "repair", Run: func(context.Context) error { return errors.New(*r.why.Load()) }}},
		Auth:   n.opts.Token, Metrics: n.reg, Logger: log,
	})
	n.admin = api.NewServer(n.ops, api.ServerOptions{Logger: log})
	n.undo.push("background tasks", func(context.Context) error {
		n.cancel()
		n.tasks.Wait()
		return nil
	})
	n.keepCertificate()
	n.serve("peer port", func() error { return n.peers.Serve(n.ctx) })
	if err := n.gossip.Start(context.Background()); err != nil {
		return err
	}
	n.serve("admin listener", func() error { return n.admin.Serve(api.LimitListener(n.adminLn, adminConns())) })
	n.undo.push("admin server", func(context.Context) error { return n.admin.Close() })
	n.serve("http listener", func() error { return n.http.Serve(n.listenAlone()) })
	n.undo.push("http server", func(context.Context) error { return n.http.Close() })
	return nil
}

// status is what the others are told of this node.
func (r *repair) status() *wire.Status {
	n := r.n
	return &wire.Status{
		ID: n.id.nodeID, Role: n.opts.Role, Region: n.opts.Region, Version: n.opts.Version, Cluster: n.id.cluster, FAgeMs: -1,
		UptimeMs: time.Since(n.started).Milliseconds(), Bootstrapped: true, WasMember: n.id.member.Load(),
		Standing: standingRepairing, Why: *r.why.Load(),
	}
}

// sorry answers clients.
func (r *repair) sorry(w http.ResponseWriter, req *http.Request) {
	if t := r.n.opts.Token; t != nil {
		if err := t.Check(req); err != nil {
			api.WriteError(w, req, err)
			return
		}
	}
	api.WriteError(w, req, &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: repairPauseMax, Message: "this node is being repaired; ask another one. It says: " + *r.why.Load(),
	})
}

// run tries until the directory is whole.
func (r *repair) run(ctx context.Context) error {
	n := r.n
	said := ""
	for wait := repairPause; ; wait = min(2*wait, repairPauseMax) {
		met := n.gossip.Changed()
		err := raftstore.Rescue(ctx, n.storeOptions(), n.id.cluster, r.ask)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case n.alone() && errors.Is(err, errAlone):
			return fmt.Errorf("%w, and no --join is given: start it with the gossip address of another node of the mesh in --join. If this was "+
				"the only voter, what is damaged is lost: move the data directory %s aside, and restore a backup", err, n.opts.DataDir)
		}
		why := "its files are damaged and have not been repaired yet: " + err.Error()
		r.say(why)
		if why != said {
			n.log.Warn("the damaged files could not be repaired yet", "error", err)
			said = why
		}
		select {
		case <-time.After(wait):
		case <-n.onMeeting(met, err):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alone reports whether this node was told of nobody and remembers nobody.
func (n *Node) alone() bool {
	known, err := n.id.knownPeers()
	return err == nil && len(known) == 0 && len(n.opts.Join) == 0 && len(n.gossip.Members()) <= 1
}

// onMeeting is met while nobody was there to be asked, and nothing otherwise.
func (n *Node) onMeeting(met <-chan struct{}, err error) <-chan struct{} {
	if errors.Is(err, errAlone) {
		return met
	}
	return nil
}

// storeOptions are those by which the central store is found on disk.
func (n *Node) storeOptions() raftstore.Options {
	return raftstore.Options{
		Dir: filepath.Join(n.id.dir, "store"), NodeID: n.id.nodeID, Logger: n.component("raft"),
		LogStore: n.opts.Env.Log, KEK: n.kek, FS: n.opts.Env.FS,
	}
}

// ask is raftstore.Ask: it asks one voter after the other, following what they say about the leader.
func (r *repair) ask(ctx context.Context, req raftstore.RescueRequest) ([]byte, io.ReadCloser, error) {
	queue := r.n.dir.Voters()
	asked := map[string]bool{"": true, r.n.id.nodeID: true}
	var errs []error
	for len(queue) > 0 && ctx.Err() == nil {
		id := queue[0]
		queue = queue[1:]
		if asked[id] {
			continue
		}
		asked[id] = true
		meta, archive, err := askRescue(ctx, r.n.dialer, id, req)
		if err == nil {
			r.n.log.Info("a voter gives what is needed", "voter", r.describe(id))
			r.say("its files were damaged; it copies the state from " + r.describe(id))
			return meta, archive, nil
		}
		if e := asKVError(err); e != nil && e.Code == kv.CodeNotLeader {
			queue = slices.Insert(queue, 0, e.Leader)
		}
		errs = append(errs, fmt.Errorf("%s: %w", r.describe(id), err))
	}
	if len(errs) == 0 {
		return nil, nil, errAlone
	}
	return nil, nil, errors.New(joined(errs))
}

func joined(errs []error) string {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// describe names a node for people.
func (r *repair) describe(id string) string {
	if m, ok := r.n.gossip.Member(id); ok {
		return fmt.Sprintf("%s in %s (%s)", m.Name, m.Region, id)
	}
	return id
}
