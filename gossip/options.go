package gossip

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// Options is everything a Gossip needs. ID, Role, Region, Bind and Key are required.
type Options struct {
	// ID is the node's persisted UUID; it is also its memberlist name. At most maxIDBytes.
	ID string
	// Name, Role, Region and Version are shown to the other nodes as they are.
	Name, Role, Region, Version string
	// HTTP and Peer are the host:port of those listeners that other nodes should use.
	HTTP, Peer string
	// Cluster is the cluster id in hex, "" when the node belongs to no mesh yet. SetCluster changes it later.
	Cluster string
	// Expect is the bootstrap-expect of a voter, 0 = not asked. SetExpect changes it later.
	Expect int

	// Bind is the host:port to listen on, UDP and TCP alike. Port 0 takes a free one.
	Bind string
	// AdvertiseHost is the name or address that other nodes must use for this one; required when Bind is a wildcard.
	AdvertiseHost string
	// Key is the gossip key: 32 bytes, for AES-256.
	Key []byte
	// Label stands in clear before every packet and stream, and is authenticated with it. It has to be the same on all
	// nodes of a mesh and known to a joiner before its first packet, so it is derived from the mesh key. At most maxLabelBytes.
	Label string
	// Seeds are gossip addresses (host:port) given by the operator; they are asked for ever.
	Seeds []string
	// KnownPeers are gossip addresses remembered from an earlier run; they are asked for forgetFailed after the start.
	KnownPeers []string
	Profile    Profile

	// Shaper delays what this node sends; nil = no delay.
	Shaper Shaper
	// Network opens the sockets; nil = the machine's own.
	Network Network
	// OnHint is handed every hint of another node once, from a single goroutine of this package. It may block for a
	// while: hints that no longer fit into the queue before it are dropped and counted. It owns payload.
	OnHint func(payload []byte)

	Logger  *slog.Logger          // nil = discard
	Metrics prometheus.Registerer // nil = not registered
}

// Shaper makes links slower, so that a mesh on one machine behaves like one around the world. addr is the gossip address
// (IP:port) of the other end. Neither method may block.
type Shaper interface {
	// Delay is how long a packet to addr is on its way (one direction).
	Delay(addr string) time.Duration
	// WrapConn wraps a stream that this node has dialled to addr. Accepted streams are not wrapped, their far end is an
	// anonymous port, so the wrapper delays both directions.
	WrapConn(c net.Conn, addr string) net.Conn
}

// Profile says what kind of network the pool lives in: an outcome rather than two dozen settings.
type Profile uint8

const (
	// LAN is for one data centre and for meshes on one machine: a dead node has failed about 4 s after it was suspected
	// (up to ten nodes; the window grows with log10 of their number), news travels in tenths of a second.
	LAN Profile = iota
	// WAN is for pools across regions and slow machines: 10 s to refute a suspicion, twice that when few confirm it.
	WAN
	// Test is for tests: everything is as quick as a loaded machine still bears.
	Test
)

func (p Profile) String() string {
	switch p {
	case LAN:
		return "lan"
	case WAN:
		return "wan"
	case Test:
		return "test"
	}
	return "profile(" + strconv.Itoa(int(p)) + ")"
}

// timing is what a profile stands for.
type timing struct {
	probeInterval, probeTimeout time.Duration
	suspicionMult               int
	gossipInterval              time.Duration
	gossipNodes                 int
	pushPull                    time.Duration // full state exchange with a random node, also of recent hints
	stream                      time.Duration // limit on dialling and on every exchange over a stream
	rejoin                      time.Duration // between rounds that look for lost members
	firstRetry                  time.Duration // while nobody was ever met; doubles up to rejoin
	ping                        time.Duration // between measurements of the regions
	doubt                       time.Duration // between pings of a suspect
}

// timings starts from ProbeTimeout 1.5 s, ProbeInterval 2 s, SuspicionMult 5, below which slow machines make nodes flap.
// LAN keeps the generous probe and shortens only the suspicion, which a living node refutes in a few gossip intervals.
func (p Profile) timings() (timing, error) {
	base := timing{
		probeInterval: 2 * time.Second, probeTimeout: 1500 * time.Millisecond, suspicionMult: 5,
		gossipInterval: 200 * time.Millisecond, gossipNodes: 5,
		pushPull: 30 * time.Second, stream: 10 * time.Second,
		rejoin: 10 * time.Second, firstRetry: 200 * time.Millisecond,
		ping: 10 * time.Second, doubt: time.Second,
	}
	switch p {
	case LAN:
		base.suspicionMult, base.gossipInterval, base.stream = 2, 100*time.Millisecond, 4*time.Second
	case WAN:
	case Test:
		base.probeInterval, base.probeTimeout, base.suspicionMult = time.Second, 700*time.Millisecond, 2
		base.gossipInterval, base.stream, base.pushPull = 20*time.Millisecond, 2*time.Second, 5*time.Second
		base.rejoin, base.firstRetry, base.ping = time.Second, 50*time.Millisecond, time.Second
		base.doubt = 200 * time.Millisecond
	default:
		return timing{}, fmt.Errorf("gossip: unknown %s", p)
	}
	return base, nil
}

// Limits of one node's input; those of the wire formats stand beside their codecs.
const (
	maxIDBytes  = 64
	maxExpect   = 99   // voters; seven are many
	maxSeeds    = 64   // seeds and known peers each: more are a mistake in a configuration file
	packetBytes = 1400 // fits an Ethernet frame; a hint of MaxHintBytes fits with label and encryption
)

func (o *Options) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("gossip: "+format, args...)) }
	if o.ID == "" || len(o.ID) > maxIDBytes || !printable(o.ID) {
		bad("node id %q: want 1 to %d printable bytes", o.ID, maxIDBytes)
	}
	if len(o.Key) != 32 {
		bad("key has %d bytes, want 32", len(o.Key))
	}
	if len(o.Label) > maxLabelBytes {
		bad("label has %d bytes, limit %d", len(o.Label), maxLabelBytes)
	}
	if o.Role == "" || o.Region == "" {
		bad("role and region must be set (role %q, region %q)", o.Role, o.Region)
	}
	if o.Cluster != "" {
		if _, err := kv.ParseClusterID(o.Cluster); err != nil {
			bad("%w", err)
		}
	}
	if o.Expect < 0 || o.Expect > maxExpect {
		bad("bootstrap-expect %d: want 0 to %d", o.Expect, maxExpect)
	}
	if len(o.Seeds) > maxSeeds {
		bad("%d seeds, limit %d (--join)", len(o.Seeds), maxSeeds)
	}
	for _, s := range o.Seeds {
		if err := checkAddr(s); err != nil {
			bad("seed %q (--join): %w", s, err)
		}
	}
	if err := checkAddr(o.Bind); err != nil {
		bad("listen address %q (--gossip): %w", o.Bind, err)
	}
	return errors.Join(errs...)
}

// maxLabelBytes keeps a hint of MaxHintBytes within one packet; memberlist itself would allow 255.
const maxLabelBytes = 128

func checkAddr(hostport string) error {
	_, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return errors.New("want host:port")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is no number up to 65535", port)
	}
	return nil
}

// memberlistConfig spells every setting out: what is not here is memberlist's default for one network.
func (g *Gossip) memberlistConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.opts.ID
	c.Transport = g.tr
	c.Label = g.opts.Label
	c.SecretKey = g.opts.Key
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false // hints are small and random; and no decompression bombs
	c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = 1, 1, 1
	c.ProbeInterval, c.ProbeTimeout = g.time.probeInterval, g.time.probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult = g.time.suspicionMult, 2
	c.GossipInterval, c.GossipNodes = g.time.gossipInterval, g.time.gossipNodes
	c.PushPullInterval, c.TCPTimeout = g.time.pushPull, g.time.stream
	c.UDPBufferSize = packetBytes
	// A node that comes back at another address may take its name over as soon as the old one is known to be dead.
	c.DeadNodeReclaimTime = time.Millisecond
	c.BindAddr, c.BindPort = g.tr.self.Addr().String(), int(g.tr.self.Port())
	d := (*delegate)(g)
	c.Delegate, c.Events, c.Ping, c.Merge, c.Alive, c.Conflict = d, d, d, d, d, d
	c.Logger = g.libLogger()
	return c
}
