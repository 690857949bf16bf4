// Package simnet is a network in memory for simulations of whole meshes: hosts, datagrams and streams with delay, jitter,
// loss, duplication and reordering, links cut in one direction or both, and hosts that crash. All waiting is done by
// timers and channels, so it runs in virtual time inside a testing/synctest bubble. What happens is drawn from a seed.
package simnet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Link is one direction between two hosts.
type Link struct {
	Delay  time.Duration
	Jitter time.Duration // added to Delay, uniformly; datagrams overtake each other, streams do not
	// Loss and Duplicate are shares of datagrams. A stream segment that is lost arrives one retransmission later.
	Loss, Duplicate float64
	Cut             bool // nothing arrives
}

const (
	backlog = 1024 // datagrams, and connections, that wait for whoever reads them
	// retransmit is what a lost segment of a stream costs.
	retransmit = 200 * time.Millisecond
	// streamTimeout resets a stream over a link that has been cut for so long (TCP_USER_TIMEOUT, keepalive).
	streamTimeout = 25 * time.Second
	// streamBuffer is how much may be on its way in one direction of a stream before the writer waits.
	streamBuffer = 4 << 20
)

// Net is the network.
type Net struct {
	mu      sync.Mutex // guards all below; held for map operations only
	rng     *rand.Rand
	sockets map[netip.AddrPort]*socket
	streams map[*Conn]struct{}
	link    func(from, to string) Link
	cuts    map[[2]string]time.Time // since when
	down    map[string]bool         // hosts without power
	ports   uint16
	grain   time.Duration // arrivals happen at multiples of it; 0 = whenever
	changed chan struct{} // closed when a link may have changed
}

// New returns a network whose links are as link says; Cut adds to that.
func New(seed uint64, link func(from, to string) Link) *Net {
	return &Net{
		rng: rand.New(rand.NewPCG(seed, 0x6e6574)), sockets: make(map[netip.AddrPort]*socket), streams: make(map[*Conn]struct{}),
		link: link, cuts: make(map[[2]string]time.Time), down: make(map[string]bool), ports: 40000, changed: make(chan struct{}),
	}
}

// SetLinks replaces what the links are like.
func (n *Net) SetLinks(link func(from, to string) Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link = link
	n.wake()
}

// SetGrain lets everything arrive at multiples of d, so that much happens at the same instant, and in any order. It must be
// called before anything is sent.
func (n *Net) SetGrain(d time.Duration) { n.grain = d }

// arrival is when what is sent now arrives.
func (n *Net) arrival(delay time.Duration) time.Time {
	at := time.Now().Add(delay)
	if n.grain > 0 {
		if early := at.Truncate(n.grain); early.Before(at) {
			return early.Add(n.grain)
		}
	}
	return at
}

// Cut cuts the direction from one host to another, or joins it again.
func (n *Net) Cut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	key := [2]string{from, to}
	if _, was := n.cuts[key]; was == cut {
		return
	}
	if cut {
		n.cuts[key] = time.Now()
	} else {
		delete(n.cuts, key)
	}
	n.wake()
}

// Heal joins everything again.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	n.wake()
}

func (n *Net) wake() {
	close(n.changed)
	n.changed = make(chan struct{})
}

// state is what a link is like now, and since when it has been cut.
func (n *Net) state(from, to string) (l Link, since time.Time, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if from == to {
		return Link{}, time.Time{}, n.changed
	}
	l = n.link(from, to)
	if at, cut := n.cuts[[2]string{from, to}]; cut {
		l.Cut, since = true, at
	}
	return l, since, n.changed
}

// chance draws from the seed.
func (n *Net) chance(p float64) bool {
	if p <= 0 {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rng.Float64() < p
}

func (n *Net) jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Duration(n.rng.Int64N(int64(d)))
}

// SetDown takes a host's power, or gives it back. Its streams are reset and its sockets closed, as the end of its process
// does; the other ends hear of it when their link lets them. While it is down it can neither send nor listen.
func (n *Net) SetDown(ip string, down bool) {
	n.mu.Lock()
	n.down[ip] = down
	var conns []*Conn
	var socks []*socket
	if down {
		for c := range n.streams {
			if c.local == ip {
				conns = append(conns, c)
			}
		}
		for addr, s := range n.sockets {
			if addr.Addr().String() == ip {
				socks = append(socks, s)
			}
		}
	}
	n.mu.Unlock()
	for _, s := range socks {
		_ = s.close()
	}
	for _, c := range conns {
		c.reset()
	}
}

func (n *Net) isDown(ip string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down[ip]
}

// Host is one machine of the network. It implements gossip.Network.
type Host struct {
	net *Net
	ip  string
}

// Host returns the machine with an IP.
func (n *Net) Host(ip string) *Host { return &Host{n, ip} }

// socket is a datagram socket, a listener, or both, at one address.
type socket struct {
	host    *Host
	addr    netip.AddrPort
	packets chan packet
	conns   chan net.Conn
	done    chan struct{}
	once    sync.Once
}

type packet struct {
	b    []byte
	from net.Addr
}

// Listen opens a datagram socket and a listener at one address; port 0 takes a free one.
func (h *Host) Listen(_ context.Context, hostport string) (net.PacketConn, net.Listener, error) {
	s, err := h.bind(hostport)
	if err != nil {
		return nil, nil, err
	}
	return (*packetConn)(s), (*listener)(s), nil
}

// ListenStream opens a listener.
func (h *Host) ListenStream(hostport string) (net.Listener, error) {
	s, err := h.bind(hostport)
	if err != nil {
		return nil, err
	}
	return (*listener)(s), nil
}

func (h *Host) bind(hostport string) (*socket, error) {
	addr, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return nil, err
	}
	if addr.Addr().String() != h.ip {
		return nil, fmt.Errorf("host %s cannot listen on %s", h.ip, hostport)
	}
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr.Port() == 0 {
		n.ports++
		addr = netip.AddrPortFrom(addr.Addr(), n.ports)
	}
	if n.sockets[addr] != nil {
		return nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	s := &socket{
		host: h, addr: addr, packets: make(chan packet, backlog), conns: make(chan net.Conn, backlog), done: make(chan struct{}),
	}
	n.sockets[addr] = s
	return s, nil
}

func (n *Net) socket(addr netip.AddrPort) *socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sockets[addr]
}

func (s *socket) close() error {
	s.once.Do(func() {
		s.host.net.mu.Lock()
		defer s.host.net.mu.Unlock()
		delete(s.host.net.sockets, s.addr)
		close(s.done)
	})
	return nil
}

// Dial opens a stream. It takes a round trip, and waits for ctx when a direction is cut.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	ip := to.Addr().String()
	if h.net.isDown(h.ip) {
		return fail(syscall.ENETDOWN)
	}
	for {
		there, _, changed := h.net.state(h.ip, ip)
		back, _, _ := h.net.state(ip, h.ip)
		var answered <-chan time.Time
		if !there.Cut && !back.Cut {
			answered = time.After(time.Until(h.net.arrival(there.Delay + back.Delay)))
			changed = nil
		}
		select {
		case <-ctx.Done():
			return fail(ctx.Err())
		case <-changed:
			continue
		case <-answered:
		}
		break
	}
	s := h.net.socket(to)
	if s == nil {
		return fail(syscall.ECONNREFUSED)
	}
	near, far := h.net.pair(h.ip, ip, to)
	select {
	case s.conns <- far:
		return near, nil
	default:
		near.reset()
		far.reset()
		return fail(syscall.ECONNREFUSED)
	}
}

type packetConn socket

func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-c.packets:
		return copy(b, p.b), p.from, nil
	case <-c.done:
		return 0, nil, net.ErrClosed
	}
}

func (c *packetConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	to, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return 0, err
	}
	n := c.host.net
	if n.isDown(c.host.ip) {
		return len(b), nil
	}
	l, _, _ := n.state(c.host.ip, to.Addr().String())
	copies := 1
	if n.chance(l.Duplicate) {
		copies = 2
	}
	p := packet{slices.Clone(b), c.LocalAddr()}
	for range copies {
		if l.Cut || n.chance(l.Loss) {
			continue
		}
		time.AfterFunc(time.Until(n.arrival(l.Delay+n.jitter(l.Jitter))), func() {
			if s := n.socket(to); s != nil {
				select {
				case s.packets <- p:
				default: // the reader's buffer is full
				}
			}
		})
	}
	return len(b), nil
}

func (c *packetConn) Close() error                     { return (*socket)(c).close() }
func (c *packetConn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.addr) }
func (c *packetConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *packetConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *packetConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type listener socket

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { return (*socket)(l).close() }
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }
