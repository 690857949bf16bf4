// Package node is the composition root: it makes one kvmesh process from its parts, and joins raftstore, gossip and
// cache, which do not know each other. A node is a value; many can live in one process (kvmesh dev, and the tests).
//
//	  HTTP: node/api                            admin: node/ops
//	       │
//	    service ──── writes ──► proposer ──────────────► leader's raftstore
//	       │                       │ result                    │ Apply
//	     reads                     ▼                           ▼
//	       └──────────────────►  cache  ◄── follower ◄── feed: ring of records
//	                             │  ▲ ▲                        │
//	           misses: asker ◄───┘  │ └── prober (F)           └─► feedServer ─► other nodes
//	owner · nearest voter · leader  │
//	                             hinter ◄──► gossip ──► directory: who is where
//
// Voters have all of it; edges have no raftstore, no answerer and no blobs, and follow the feed of the nearest voter.
package node

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kvmesh/cache"
	"kvmesh/gossip"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/httpcert"
	"kvmesh/node/ops"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/blobkeep"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// ringBytes bounds the recent records that a node keeps for those who follow it: about a minute at 10,000 writes/s.
const ringBytes = 16 << 20

// Node is one running kvmesh node.
type Node struct {
	opts    Options
	log     *slog.Logger
	started time.Time
	reg     *prometheus.Registry

	id       *identity
	kek      *seal.KEK
	gossip   *gossip.Gossip
	dir      *directory
	rpc      *peer.Client
	dialer   *peer.Dialer
	peers    *peer.Server
	control  *controlState
	clock    *meshClock
	cache    *cache.Cache
	ring     *feed.Ring
	hints    *hinter
	hedges   prometheus.Counter
	blobs    *blobTransfer
	follow   *follower
	proposer *proposer
	service  *service
	backups  *backups

	store     *raftstore.Store // nil on edges, like the next five
	answerer  *answerer
	bootstrap *bootstrapper
	standing  *standing
	members   *memberDuty
	missing   func() int    // counts the large values to be fetched yet; nil = none are ever missing
	committed chan struct{} // newControl is to be taken over
	// newControl is the control state as of the newest commit that changed it.
	newControl atomic.Pointer[kv.Control]

	httpLn, adminLn net.Listener
	httpCert        *httpcert.Keeper // nil = the public listener speaks no TLS
	http            httpServer
	admin           *http.Server
	ops             *ops.Handler
	draining        atomic.Bool // the node stops: connections are given up

	undo   teardown
	ctx    context.Context // of everything that runs in the background
	cancel context.CancelFunc
	// leaving ends when the node has drained: what may take hours is not waited for.
	leaving context.Context
	leave   context.CancelFunc
	tasks   sync.WaitGroup
	failMu  sync.Mutex // guards failure
	failed  error
}

// New makes a node: it opens the data directory and all listeners, and starts nothing yet.
func New(opts Options) (n *Node, err error) {
	n = newNode(opts)
	defer func() {
		if err != nil {
			n.cancel()
			_ = n.undo.run(context.Background())
			n = nil
		}
	}()
	if err = n.openDirectory(); err != nil {
		return n, err
	}
	if err = n.openListeners(); err != nil {
		return n, err
	}
	n.hints = newHinter(n.component("hints"), n.reg)
	if err = n.openMesh(n.hints.heard); err != nil {
		return n, err
	}
	if err = n.openCache(); err != nil {
		return n, err
	}
	if n.opts.Role != certs.RoleEdge {
		if err = n.openStore(); err != nil {
			return n, err
		}
	}
	n.openService()
	n.handlePeers()
	return n, nil
}

// newNode is a node with nothing open.
func newNode(opts Options) *Node {
	opts.defaults()
	n := &Node{opts: opts, started: time.Now(), reg: prometheus.NewRegistry(), committed: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.leaving, n.leave = context.WithCancel(n.ctx)
	n.log = opts.Logger.With("node", opts.Name)
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return n
}

// openDirectory opens the data directory and the mesh key.
func (n *Node) openDirectory() (err error) {
	if n.kek, err = seal.NewKEK(n.opts.MeshKey.KEK()); err != nil {
		return err
	}
	if n.id, err = openIdentity(n.opts.DataDir, n.kek); err != nil {
		return err
	}
	n.undo.push("data directory", func(context.Context) error { return n.id.close() })
	return nil
}

func (n *Node) component(name string) *slog.Logger { return n.log.With("component", name) }

// openListeners opens the HTTP and admin ports, and reads the certificate of the first.
func (n *Node) openListeners() (err error) {
	if n.opts.HTTPCert != "" || n.opts.HTTPKey != "" {
		n.httpCert, err = httpcert.Open(httpcert.Options{
			CertFile: n.opts.HTTPCert, KeyFile: n.opts.HTTPKey, Logger: n.component("http"), Metrics: n.reg,
		})
		if err != nil {
			return err
		}
	}
	if n.httpLn, err = n.opts.listen("http", n.opts.HTTP); err != nil {
		return err
	}
	n.undo.push("http listener", func(context.Context) error { return ignoreClosed(n.httpLn.Close()) })
	if n.adminLn, err = n.opts.listen("admin", n.opts.Admin); err != nil {
		return err
	}
	n.undo.push("admin listener", func(context.Context) error { return ignoreClosed(n.adminLn.Close()) })
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// openMesh opens the peer port and gossip, and what finds and calls other nodes. onHint is told of what gossip brings.
func (n *Node) openMesh(onHint func(payload []byte)) error {
	authority, err := n.opts.MeshKey.Authority()
	if err != nil {
		return err
	}
	cert, err := authority.Issue(n.id.nodeID, n.opts.Role)
	if err != nil {
		return err
	}
	peerLn, err := n.opts.listen("peer", n.opts.Peer)
	if err != nil {
		return err
	}
	n.peers, err = peer.NewServer(peer.Options{
		Listener: peerLn, Authority: authority, Cert: cert, Logger: n.component("peer"), Metrics: n.reg,
	})
	if err != nil {
		_ = peerLn.Close()
		return err
	}
	n.undo.push("peer port", n.peers.Close)

	known, err := n.id.knownPeers()
	if err != nil {
		return err
	}
	cluster := ""
	if !n.id.cluster.IsZero() {
		cluster = n.id.cluster.String()
	}
	n.gossip, err = gossip.New(gossip.Options{
		ID: n.id.nodeID, Name: n.opts.Name, Role: n.opts.Role, Region: n.opts.Region, Version: n.opts.Version,
		HTTP: n.opts.advertised(n.httpLn.Addr()), Peer: n.opts.advertised(n.peers.Addr()),
		Cluster: cluster, Expect: n.opts.BootstrapExpect,
		Bind: n.opts.Gossip, AdvertiseHost: n.opts.AdvertiseHost,
		Key: n.opts.MeshKey.GossipKey(), Label: n.opts.MeshKey.GossipLabel(),
		Seeds: n.opts.Join, KnownPeers: known, Profile: n.opts.gossipProfile(), Shaper: n.opts.Shaper,
		Network: n.opts.Env.Gossip, OnHint: onHint, Logger: n.component("gossip"), Metrics: n.reg,
	})
	if err != nil {
		return err
	}
	n.undo.push("gossip", n.gossip.Stop)
	n.dir = newDirectory(n.id.nodeID, n.opts.Region, n.gossip)
	n.dialer = &peer.Dialer{Authority: authority, Cert: cert, Resolve: n.dir.Addr, Shaper: n.opts.Shaper, DialContext: n.opts.Env.Dial}
	n.rpc = peer.NewClient(peer.ClientOptions{Dialer: n.dialer, Logger: n.component("rpc"), Metrics: n.reg})
	n.undo.push("rpc client", func(context.Context) error { n.rpc.Close(); return nil })
	return nil
}

// openCache makes the cache and what keeps it fresh.
func (n *Node) openCache() error {
	own := newOwnClock(n.opts.Env.Mono, n.opts.Env.Wall)
	n.clock = newMeshClock(n.opts.Env.Mono, own.Now, n.opts.Env.Wall())
	n.ring = feed.NewRing(n.opts.RingBytes)
	n.hedges = prometheus.NewCounter(prometheus.CounterOpts{Name: "kvmesh_fill_hedges_total", Help: "Second requests sent because a voter took unusually long."})
	n.reg.MustRegister(n.hedges)
	n.control = newControlState(n.kek, n.id.dir, n.component("control"))
	n.control.ask, n.control.joined = n.askControl, n.joined
	if err := n.control.loadCopy(); err != nil {
		n.log.Warn("the local copy of the control state is of no use, the mesh will give a new one", "error", err)
	}
	ask := &asker{n: n, hedge: newHedger(), index: newReadIndex(n.confirmed)}
	n.undo.push("read index", func(context.Context) error { ask.index.close(); return nil })
	opts := cache.Options{
		Bytes: n.opts.CacheBytes, Clock: own.Now, Restarted: true, Asker: ask, Logger: n.component("cache"), Metrics: n.reg,
	}
	if n.opts.Role != certs.RoleEdge {
		opts.Local = ask.local
	}
	n.cache = cache.New(opts)
	n.undo.push("cache", func(context.Context) error { n.cache.Close(); return nil })
	n.hints.cache, n.hints.gossip = n.cache, n.gossip
	n.blobs = newBlobTransfer(n.ctx, n.id.nodeID, n.dir, n.dialer, n.component("blobs"))
	n.follow = &follower{
		cache: n.cache, ring: n.ring, control: n.control, dir: n.dir, clock: n.clock, dialer: n.dialer,
		rpc: n.rpc, log: n.component("feed"), hinted: make(chan struct{}, 1), metrics: newFeedMetrics(n.reg),
	}
	n.hints.follow = n.follow
	n.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvmesh_feed_lag_revisions", Help: "How many revisions this node has heard of and not applied yet.",
	}, n.follow.lag))
	n.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "kvmesh_feed_depth", Help: "How many feeds lie between this edge and the store: 1 behind a voter, 2 behind a relay, 0 when none works.",
	}, func() float64 { depth, _ := n.follow.depth(); return float64(depth) }))
	return nil
}

// openStore opens the central store of a voter or learner.
func (n *Node) openStore() error {
	if err := n.openBlobs(); err != nil {
		return err
	}
	n.standing = newStanding(n)
	stream := &metStream{StreamLayer: peer.NewStreamLayer(n.peers, n.dialer), met: n.standing.waitMet}
	var err error
	opts := n.storeOptions()
	opts.Stream, opts.Profile, opts.Changes = stream, n.opts.raftProfile(), n.opts.ChangeIndex
	opts.MeshNow, opts.Mono, opts.Observe, opts.Init = n.clock.Now, n.cache.Now, n.observe, n.firstCommand
	opts.Fatal, opts.Metrics, opts.Hold = n.fail, n.reg, n.blobs.keeper.Hold
	if n.store, err = raftstore.Open(n.ctx, opts); err != nil {
		return err
	}
	n.undo.push("central store", n.store.Close)
	n.blobs.writable = n.store.Writable
	has, err := n.store.Bootstrapped()
	if err == nil {
		err = n.id.checkMember(has)
	}
	if err != nil {
		return err
	}
	n.standing.store = n.store
	n.members = newMemberDuty(n)
	n.blobs.state = n.store.State()
	applied := n.store.State().Applied()
	n.ring.Begin(applied.Epoch, applied.Revision)
	control := n.store.State().Control()
	if n.newControl.CompareAndSwap(nil, &control) {
		n.committed <- struct{}{}
	}
	n.clock.Observe(applied.MeshTime)
	n.answerer = &answerer{store: n.store, blobs: n.blobs, cache: n.cache, clock: n.clock}
	n.bootstrap = &bootstrapper{
		self: n.id.nodeID, expect: n.opts.BootstrapExpect, gossip: n.gossip, store: n.store, rpc: n.rpc,
		known: func() bool { c, _ := n.control.current(); return !c.Cluster.IsZero() }, log: n.component("bootstrap"),
	}
	return nil
}

// openBlobs opens the large values of a voter or learner, and makes what keeps them in step with the state.
func (n *Node) openBlobs() (err error) {
	disk := n.opts.Env.FS
	if disk == nil {
		disk = vfs.Default
	}
	if n.blobs.local, err = blob.OpenFS(disk, filepath.Join(n.id.dir, "blobs")); err != nil {
		return err
	}
	n.blobs.keeper, err = blobkeep.New(blobkeep.Options{
		Store: n.blobs.local, Peers: blobPeers{n.blobs}, MeshNow: n.clock.Now,
		Term: func() uint64 { return n.store.Status().Term }, Current: n.current,
		Logger: n.component("blobs"), Metrics: n.reg,
	})
	if err != nil {
		return err
	}
	n.missing = n.blobs.keeper.MissingBlobs
	return nil
}

// currentWithin is how long ago a voter's state must have been proven current for it to count as up to date.
const currentWithin = 10 * time.Second

// current reports whether the own state holds everything that was committed a few seconds ago.
func (n *Node) current() bool {
	epoch, w, f, proven := n.cache.Proof()
	applied := n.store.State().Applied()
	return proven && n.cache.Now()-f < currentWithin && applied.Epoch == epoch && applied.Revision >= w
}

// observe is told of every commit of the own state machine. It must not block.
func (n *Node) observe(c state.Committed) {
	for _, rec := range c.Records {
		n.ring.Append(rec)
	}
	n.blobs.keeper.Observe(c)
	if c.Control != nil {
		n.newControl.Store(c.Control)
		select {
		case n.committed <- struct{}{}:
		default: // the task that takes it over will find the newest one
		}
	}
}

// firstCommand makes a new mesh's first log entry. It waits until this leader has compared its clock with the other
// voters': mesh time never goes back, so a mesh that began an hour ahead would stay there.
func (n *Node) firstCommand() (command.Op, error) {
	select {
	case <-n.clock.Agreed():
	case <-time.After(clockTimeout):
		return command.Op{}, kv.Errorf(kv.CodeUnavailable, "the voters have not compared their clocks yet")
	case <-n.ctx.Done():
		return command.Op{}, n.ctx.Err()
	}
	id := kv.NewNamespaceID()
	wrapped, err := n.kek.NewDataKey(id)
	return command.Op{
		Kind: command.KindInit, Cluster: kv.NewClusterID(), Epoch: kv.NewEpoch(n.clock.Now(), kv.Epoch{}),
		Namespace: id, Title: "default", WrappedKey: wrapped,
	}, err
}

// joined is told which mesh the control state belongs to.
func (n *Node) joined(c kv.ClusterID) error {
	if c.IsZero() {
		return nil
	}
	if err := n.id.setCluster(c); err != nil {
		n.fail(err)
		return err
	}
	return n.gossip.SetCluster(c.String())
}

// openService makes the HTTP surfaces.
func (n *Node) openService() {
	cursorKey, err := hkdf.Key(sha256.New, n.opts.MeshKey.KEK(), nil, "kvmesh/cursor/1", 32)
	if err != nil {
		panic(err) // only for lengths that SHA-256 cannot give
	}
	epoch := func() kv.Epoch { e, _ := n.cache.Position(); return e }
	limits := n.opts.writeLimits()
	forward := newForwarder(n.rpc.Call, epoch, limits.whole)
	n.undo.push("forwarded writes", func(context.Context) error { forward.close(); return nil })
	n.proposer = &proposer{self: n.id.nodeID, dir: n.dir, store: n.store, epoch: epoch, forward: forward, limits: limits}
	n.service = &service{
		cache: n.cache, control: n.control, clock: n.clock, blobs: n.blobs, hints: n.hints, kek: n.kek, dir: n.dir,
		bulk:     newBulkGate(),
		proposer: n.proposer,
		lists: &lister{
			self: n.id.nodeID, dir: n.dir, rpc: n.rpc, cache: n.cache, control: n.control, local: n.answerer, cursorKey: cursorKey,
		},
		status: n.clusterStatus,
	}
	n.backups = &backups{
		self: n.id.nodeID, version: n.opts.Version, store: n.store, blobs: n.blobs, dir: n.dir, dialer: n.dialer, rpc: n.rpc,
		proposer: n.proposer, control: n.control, cache: n.cache, clock: n.clock, wall: n.opts.Env.Wall, kek: n.kek,
		log: n.component("backup"), metrics: newBackupMetrics(n.reg),
		leaving: n.leaving, slots: make(chan struct{}, maxBackups),
	}
	n.openHTTP()
}

// handlePeers says who serves what on the peer port.
func (n *Node) handlePeers() {
	mux := peer.NewMux(peer.MuxOptions{Logger: n.component("rpc"), Metrics: n.reg})
	mux.Handle(wire.MethodStatus, "status", n.serveStatus)
	mux.Handle(wire.MethodFill, "fill", n.serveFill)
	mux.Handle(wire.MethodControl, "control", n.serveControl)
	mux.Handle(wire.MethodProbe, "probe", n.serveProbe)
	mux.Handle(wire.MethodClock, "clock", serveClock(n.opts.Env.Wall))
	mux.Handle(wire.MethodMembers, "members", n.serveMembers)
	mux.Handle(wire.MethodChangeMember, "change-member", n.serveChangeMember)
	if n.store != nil {
		mux.Handle(wire.MethodGrant, "grant", n.bootstrap.serveGrant)
		mux.Handle(wire.MethodPropose, "propose", n.servePropose)
		mux.Handle(wire.MethodList, "list", n.serveList)
		mux.Handle(wire.MethodSpaces, "spaces", n.serveSpaces)
		mux.Handle(wire.MethodMemberInfo, "member-info", n.serveMemberInfo)
		n.peers.Handle(peer.ALPNBlob, anyMember, n.blobs.serve)
		n.peers.Handle(peer.ALPNBackup, anyMember, n.backups.serve)
		rescue := &rescueServer{n: n, busy: make(chan struct{}, 1)}
		n.peers.Handle(peer.ALPNRescue, peer.MaySpeakRaft, rescue.serve)
	}
	feeds := &feedServer{
		depth: n.follow.depth, ring: n.ring, control: n.control, dir: n.dir, clock: n.clock, log: n.component("feed"),
		ladder: newLadderMetric(n.reg),
	}
	if n.store != nil {
		feeds.state, feeds.noticed = n.store.State(), n.store.Noticed
		// One that is no member has no news: who follows it must find another.
		feeds.depth = func() (int, bool) { return 0, !n.standing.outside() }
	}
	mux.Handle(wire.MethodPull, "pull", feeds.servePull)
	n.peers.Handle(peer.ALPNFeed, anyMember, feeds.serve)
	n.peers.Handle(peer.ALPNRPC, anyMember, mux.Serve)
}

// anyMember lets every node with a certificate of the mesh in.
func anyMember(certs.Identity) bool { return true }

// ID is the node's persisted UUID.
func (n *Node) ID() string { return n.id.nodeID }

// HTTPURL, AdminURL and GossipAddr are where the node listens.
func (n *Node) HTTPURL() string {
	scheme := "http://"
	if n.httpCert != nil {
		scheme = "https://"
	}
	return scheme + n.httpLn.Addr().String()
}

// AdminURL is the base URL of the admin listener.
func (n *Node) AdminURL() string { return "http://" + n.adminLn.Addr().String() }

// GossipAddr is the seed address of this node.
func (n *Node) GossipAddr() string { return n.gossip.Addr() }

// Service is what the HTTP surfaces serve.
func (n *Node) Service() api.Service { return n.service }

// Metrics is what the admin listener shows.
func (n *Node) Metrics() prometheus.Gatherer { return n.reg }

// Leads reports whether this node believes that it is the leader.
func (n *Node) Leads() bool {
	if n.store == nil {
		return false
	}
	_, self := n.store.Leader()
	return self
}

// fail reports that the node cannot go on.
func (n *Node) fail(err error) {
	n.failMu.Lock()
	first := n.failed == nil
	if first {
		n.failed = err
	}
	n.failMu.Unlock()
	if first {
		n.log.Error("this node cannot go on", "error", err)
		if n.opts.Fatal != nil {
			n.opts.Fatal(fmt.Errorf("node %s: %w", n.opts.Name, err))
		}
	}
}
