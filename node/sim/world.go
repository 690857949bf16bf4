// Package sim runs a whole mesh, the real code of every package, in virtual time: voters, edges, relays and gossip over
// networks, logs, disks and clocks of our own, driven by a seed. Clients read and write at random while machines crash,
// restart and sleep, links are cut and clocks jump; everything that a client is told is checked from outside against what
// clients were told before (history.go). It is used by the tests in this folder, inside testing/synctest bubbles.
package sim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/simnet"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

var regions = []string{"a", "b", "c"}

// shape is what a mesh is made of.
type shape struct {
	edges  []int // of each region
	voters int   // round the regions
	// learners are the regions that have one.
	learners []string
	// tune changes what the nodes are told; nil = as newWorld says.
	tune func(o *node.Options)
}

// fullShape is the mesh of the random simulation: three voters in three regions; the first region has an edge that is no
// relay.
var fullShape = shape{edges: []int{3, 2, 2}, voters: 3}

// oneWay is the delay between two regions, in milliseconds.
var oneWay = map[[2]string]time.Duration{
	{"a", "b"}: 20 * time.Millisecond, {"b", "c"}: 30 * time.Millisecond, {"a", "c"}: 45 * time.Millisecond,
}

// machine is one host with its node, its disk and its clocks.
type machine struct {
	name, region, role string
	ip                 string
	opts               node.Options
	clock              *machineClock

	gate *feedGate // nil = its feeds cannot be cut

	mu   sync.Mutex // guards node
	node *node.Node // nil while the machine is down
}

// running is the machine's node, nil while it is down.
func (m *machine) running() *node.Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}

// machineClock is a machine's pair of clocks.
type machineClock struct {
	mu    sync.Mutex // guards all below
	start time.Time
	slept time.Duration // how long the monotonic clock stood still
	still time.Time     // since when it has been standing still; zero = it runs
	wall  time.Duration // how far the wall clock is off
}

// Mono reads the monotonic clock. Now and then the reader loses its processor, for as long as others have something to do
// at this instant: clocks are read in the middle of things.
func (c *machineClock) Mono() time.Duration {
	if rand.IntN(8) == 0 {
		yield(32)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.still.IsZero() {
		return c.still.Sub(c.start) - c.slept
	}
	return time.Since(c.start) - c.slept
}

// yield lets others go first, up to n times: what happens at one instant of the bubble happens in any order.
func yield(n int) {
	for range rand.IntN(n) {
		runtime.Gosched()
	}
}

func (c *machineClock) Wall() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.wall)
}

// sleep lets the machine's monotonic clock have stood still for d.
func (c *machineClock) sleep(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.slept += d
}

// stop lets the monotonic clock stand still, until it is let go on.
func (c *machineClock) stop(stop bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stop {
		c.still = time.Now()
		return
	}
	c.slept += time.Since(c.still)
	c.still = time.Time{}
}

// setWall sets the wall clock wrong by d.
func (c *machineClock) setWall(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = d
}

// world is one simulated mesh.
type world struct {
	shape    shape
	seed     uint64
	rng      *rand.Rand // of the driver only
	dir      string
	net      *simnet.Net
	machines []*machine
	regions  map[string]string // by IP
	history  *history
	key      certs.MeshKey
	log      *slog.Logger
	fatal    func(error)
	branches *branches
	clients  sync.WaitGroup
	weather  weather
	enough   func() bool // nothing is gained by going on
}

// newWorld lays out the machines; nothing runs yet.
func newWorld(sh shape, seed uint64, dir string, logTo io.Writer, fatal func(error)) *world {
	w := &world{
		shape: sh, seed: seed, rng: rand.New(rand.NewPCG(seed, 0x776f726c64)), dir: dir, history: newHistory(), key: certs.NewMeshKey(),
		regions: make(map[string]string),
		log:     slog.New(slog.DiscardHandler), fatal: fatal, branches: newBranches(), enough: func() bool { return false },
	}
	if logTo != nil {
		w.log = slog.New(slog.NewTextHandler(logTo, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	for i, n := range sh.edges {
		for j := range n {
			w.add(certs.RoleEdge, regions[i], fmt.Sprintf("%s-edge-%d", regions[i], j+1))
		}
	}
	for i := range sh.voters {
		region := regions[i%len(regions)]
		w.add(certs.RoleVoter, region, region+"-voter")
	}
	for _, region := range sh.learners {
		w.add(certs.RoleLearner, region, region+"-learner")
	}
	w.weather.clear()
	w.net = simnet.New(seed, w.link)
	for _, m := range w.machines {
		w.plug(m)
	}
	return w
}

// plug connects a machine to the network.
func (w *world) plug(m *machine) {
	host := w.net.Host(m.ip)
	m.opts.Env.Gossip = host
	m.opts.Env.Listen = host.ListenStream
	m.opts.Env.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) { return host.Dial(ctx, addr) }
}

func (w *world) add(role, region, name string) *machine {
	ip := fmt.Sprintf("10.0.0.%d", len(w.machines)+1)
	clock := &machineClock{start: time.Now()}
	at := func(port int) string { return fmt.Sprintf("%s:%d", ip, port) }
	m := &machine{name: name, region: region, role: role, ip: ip, clock: clock}
	m.opts = node.Options{
		Role: role, Region: region, Name: name, DataDir: filepath.Join(w.dir, name),
		HTTP: at(80), Peer: at(81), Gossip: at(82), Admin: at(83),
		MeshKey: w.key, CacheBytes: 4 << 10, Logger: w.log, WAN: true, RingBytes: 1 << 10, ChangeIndex: 40,
		Fatal: func(err error) {
			if m.running() != nil { // else it is being crashed
				w.fatal(err)
			}
		},
		Env: node.Environment{Wall: clock.Wall, Mono: clock.Mono},
	}
	if role == certs.RoleVoter {
		m.opts.BootstrapExpect = w.shape.voters
	}
	if role != certs.RoleEdge {
		m.opts.Env.Log = raftstore.MemoryLog()
		m.opts.Env.FS = vfs.NewMem()
	}
	if len(w.machines) > 0 {
		m.opts.Join = []string{w.machines[0].opts.Gossip}
	}
	if w.shape.tune != nil {
		w.shape.tune(&m.opts)
	}
	w.machines = append(w.machines, m)
	w.regions[ip] = region
	return m
}

// link is what the network is like, but for what is cut.
func (w *world) link(from, to string) simnet.Link { return w.weather.on(w.calm(from, to), from, to) }

// calm is what the network is like when nothing is broken.
func (w *world) calm(from, to string) simnet.Link {
	a, b := w.regions[from], w.regions[to]
	if a == b {
		return simnet.Link{Delay: 200 * time.Microsecond, Jitter: 100 * time.Microsecond, Loss: 0.001}
	}
	d, ok := oneWay[[2]string{a, b}]
	if !ok {
		d = oneWay[[2]string{b, a}]
	}
	return simnet.Link{Delay: d, Jitter: d / 4, Loss: 0.005, Duplicate: 0.01}
}

// start boots a machine.
func (w *world) start(m *machine) error {
	n, err := node.New(m.opts)
	if err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	if err := n.Start(); err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	m.mu.Lock()
	m.node = n
	m.mu.Unlock()
	return nil
}

// crash ends a machine's process without a word: its connections are gone first.
func (w *world) crash(m *machine) {
	m.mu.Lock()
	n := m.node
	m.node = nil
	m.mu.Unlock()
	if n == nil {
		return
	}
	w.net.SetDown(m.ip, true)
	w.branches.collect(n.Metrics())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		w.log.Info("crashed", "node", m.name, "error", err)
	}
	w.net.SetDown(m.ip, false)
}

// ready waits until every running node serves.
func (w *world) ready(ctx context.Context) error {
	for _, m := range w.machines {
		if n := m.running(); n != nil {
			if err := n.WaitReady(ctx); err != nil {
				return fmt.Errorf("%s is not ready: %w", m.name, err)
			}
		}
	}
	return nil
}

// stop ends everything in order.
func (w *world) stop() {
	var wg sync.WaitGroup
	for _, m := range w.machines {
		if n := m.running(); n != nil {
			w.branches.collect(n.Metrics())
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				if err := n.Stop(ctx); err != nil {
					w.log.Info("stopped", "node", m.name, "error", err)
				}
			})
		}
	}
	wg.Wait()
}

// get reads a key at a node as a client would, the value's bytes included.
func get(ctx context.Context, n *node.Node, ns kv.Namespace, key string, ttl time.Duration, k api.Consistency) (*api.Value, string, error) {
	v, err := n.Service().Get(ctx, api.GetRequest{Namespace: ns, Key: key, CacheTTL: ttl, Consistency: k})
	if err != nil || v.Absent {
		return v, "", err
	}
	if v.Open == nil {
		return v, string(v.Bytes), nil
	}
	r, err := v.Open(ctx, 0, v.Size)
	if err != nil {
		return v, "", err
	}
	b, err := io.ReadAll(r)
	_ = r.Close()
	return v, string(b), err
}
