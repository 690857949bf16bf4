package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/gossip"
	"kvmesh/node/auth"
	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/raftstore"
	"kvmesh/raftstore/kv"
)

// Options is everything one node is told. Addresses are host:port; port 0 takes a free one.
type Options struct {
	Role   string // certs.RoleVoter, RoleLearner or RoleEdge
	Region string
	Name   string // for people; "" = the region and the role
	// DataDir belongs to this node alone.
	DataDir                   string
	HTTP, Peer, Gossip, Admin string
	// HTTPCert and HTTPKey are PEM files: the public listener speaks TLS when they are given, both. They are read again when
	// they change.
	HTTPCert, HTTPKey string
	// AdvertiseHost is the host by which the others reach this node; "" = the host of each listener.
	AdvertiseHost string
	Join          []string
	// BootstrapExpect is how many voters begin a new mesh together; 0 = this node never begins one.
	BootstrapExpect int
	MeshKey         certs.MeshKey
	Token           *auth.Token // nil = every request is allowed
	// StrictLimits takes one write a second to each key on the two Cloudflare surfaces, as Workers KV does.
	StrictLimits bool
	CacheBytes   int64
	// How far back a node that was away can be told exactly what it missed: the recent records that every node keeps in
	// memory, in bytes, and the voters' change index, in revisions. 0 = 16 MiB, and about 1 GiB.
	RingBytes   int
	ChangeIndex kv.Revision
	// WAN says that voters and members are far apart.
	WAN bool
	// Hasty takes snapshots after a few hundred log entries, so that tests reach what takes days elsewhere, and without Patient
	// the shortest timers of the central store.
	Hasty bool
	// Patient keeps a leader for seconds while nothing is heard of it, and gives a write a minute, for tests on a machine that
	// is busy with other things.
	Patient bool
	Version string
	Logger  *slog.Logger
	// Shaper delays what this node sends; nil = no delay.
	Shaper peer.Shaper
	// Env is what the node takes from its machine.
	Env Environment
	// Drain is how long Stop goes on serving after /readyz has begun to fail, for clients and load balancers to notice.
	Drain time.Duration
	// Fatal is called when the node can neither go on nor heal; the process should end. nil = only logged.
	Fatal func(error)
}

func (o *Options) defaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		o.Name = o.Region + " " + o.Role
	}
	if o.RingBytes == 0 {
		o.RingBytes = ringBytes
	}
	o.Env.defaults()
}

// Environment is the seam below a node: what it takes from its machine. The zero value is the real machine; simulations
// bring networks, disks and clocks of their own.
type Environment struct {
	// Listen opens a stream listener on host:port.
	Listen func(addr string) (net.Listener, error)
	// Dial opens a stream.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Gossip opens gossip's sockets.
	Gossip gossip.Network
	// Log keeps Raft's log, FS the state.
	Log raftstore.LogStore
	FS  vfs.FS
	// Wall is the wall clock. Mesh time is made from those of the voters. Mono is the monotonic clock; it stands still while
	// a machine sleeps.
	Wall func() time.Time
	Mono func() time.Duration
}

func (e *Environment) defaults() {
	if e.Listen == nil {
		e.Listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	if e.Wall == nil {
		e.Wall = time.Now
	}
	if e.Mono == nil {
		start := time.Now()
		e.Mono = func() time.Duration { return time.Since(start) }
	}
}

func (o *Options) raftProfile() raftstore.Profile {
	switch {
	case o.Hasty && o.Patient:
		return raftstore.ProfileTestPatient
	case o.Patient:
		return raftstore.ProfilePatient
	case o.Hasty:
		return raftstore.ProfileTest
	case o.WAN:
		return raftstore.ProfileWAN
	}
	return raftstore.ProfileLAN
}

func (o *Options) gossipProfile() gossip.Profile {
	if o.WAN || o.Patient {
		return gossip.WAN
	}
	return gossip.LAN
}

// listen opens a TCP listener and says in its error which flag to change.
func (o *Options) listen(flag, addr string) (net.Listener, error) {
	l, err := o.Env.Listen(addr)
	if err != nil {
		return nil, fmt.Errorf("--%s %s cannot be listened on (%w); stop the process that has the port, or choose another address", flag, addr, err)
	}
	return l, nil
}

// advertised is the address by which others reach a listener.
func (o *Options) advertised(l net.Addr) string {
	host, port, err := net.SplitHostPort(l.String())
	if err != nil {
		return l.String()
	}
	if o.AdvertiseHost != "" {
		host = o.AdvertiseHost
	}
	return net.JoinHostPort(host, port)
}
