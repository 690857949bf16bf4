// Package gossiptest is a network in memory for tests of gossip: hosts with addresses, packets that take time and get
// lost, streams, partitions. All waiting is done by timers and channels, so it runs in virtual time inside a
// testing/synctest bubble.
package gossiptest

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	backlog     = 1024 // packets that wait for their reader; more are lost, as in a kernel
	streamQueue = 64   // writes under way in one direction of a stream
)

// Net is the network. The zero value is not usable, use New.
type Net struct {
	mu        sync.Mutex // guards all below; held for map operations only
	listeners map[string]*socket
	delay     func(from, to string) time.Duration
	loss      float64
	group     map[string]int // partition of a host; hosts without one are in 0
	ports     int
}

// New returns a network with a delay of 200 µs everywhere, no loss, and nobody on it.
func New() *Net {
	return &Net{
		listeners: make(map[string]*socket), group: make(map[string]int), ports: 40000,
		delay: func(string, string) time.Duration { return 200 * time.Microsecond },
	}
}

// SetDelay sets the one-way delay between two hosts (IPs).
func (n *Net) SetDelay(f func(from, to string) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = f
}

// SetLoss sets the share of packets that are lost. Streams lose nothing, as TCP does.
func (n *Net) SetLoss(share float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = share
}

// Partition cuts the network: hosts reach only those of their own group. Hosts that are not named form one more group.
// What crosses a cut disappears without an error, and dialling times out.
func (n *Net) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.group)
	for i, hosts := range groups {
		for _, h := range hosts {
			n.group[h] = i + 1
		}
	}
}

// Heal ends every partition.
func (n *Net) Heal() { n.Partition() }

// link says how long something takes from one host to another, and whether it arrives at all.
func (n *Net) link(from, to string, packet bool) (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	lost := n.group[from] != n.group[to] || (packet && from != to && rand.Float64() < n.loss)
	return n.delay(from, to), !lost
}

// Host returns the network as the host with that IP sees it. It implements gossip.Network.
func (n *Net) Host(ip string) *Host { return &Host{net: n, ip: ip} }

// Host is one machine.
type Host struct {
	net *Net
	ip  string
}

// socket is a packet socket and a listener at one address.
type socket struct {
	host    *Host
	addr    netip.AddrPort
	packets chan packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

type packet struct {
	b    []byte
	from net.Addr
}

// Listen implements gossip.Network.
func (h *Host) Listen(_ context.Context, hostport string) (net.PacketConn, net.Listener, error) {
	addr, err := netip.ParseAddrPort(hostport)
	if err != nil {
		return nil, nil, err
	}
	if addr.Addr().String() != h.ip {
		return nil, nil, fmt.Errorf("host %s cannot listen on %s", h.ip, hostport)
	}
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if addr.Port() == 0 {
		h.net.ports++
		addr = netip.AddrPortFrom(addr.Addr(), uint16(h.net.ports))
	}
	if h.net.listeners[addr.String()] != nil {
		return nil, nil, os.NewSyscallError("bind", syscall.EADDRINUSE)
	}
	s := &socket{
		host: h, addr: addr, done: make(chan struct{}),
		packets: make(chan packet, backlog), streams: make(chan net.Conn, backlog),
	}
	h.net.listeners[addr.String()] = s
	return (*packetConn)(s), (*listener)(s), nil
}

// Dial implements gossip.Network.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	ip := to.Addr().String()
	there, ok := h.net.link(h.ip, ip, false)
	back, okBack := h.net.link(ip, h.ip, false)
	var answered <-chan time.Time
	if ok && okBack {
		answered = time.After(there + back)
	}
	select {
	case <-ctx.Done():
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: ctx.Err()}
	case <-answered:
	}
	h.net.mu.Lock()
	s := h.net.listeners[to.String()]
	h.net.mu.Unlock()
	refused := &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: syscall.ECONNREFUSED}
	if s == nil {
		return nil, refused
	}
	near, far := net.Pipe()
	select {
	case s.streams <- h.net.stream(far, ip, h.ip):
		return h.net.stream(near, h.ip, ip), nil
	default:
		return nil, refused
	}
}

func (s *socket) close() error {
	s.once.Do(func() {
		s.host.net.mu.Lock()
		defer s.host.net.mu.Unlock()
		delete(s.host.net.listeners, s.addr.String())
		close(s.done)
	})
	return nil
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
	d, ok := n.link(c.host.ip, to.Addr().String(), true)
	if !ok {
		return len(b), nil
	}
	p := packet{b: slices.Clone(b), from: c.LocalAddr()}
	time.AfterFunc(d, func() {
		n.mu.Lock()
		s := n.listeners[to.String()]
		n.mu.Unlock()
		if s == nil {
			return
		}
		select {
		case s.packets <- p:
		default:
		}
	})
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
	case c := <-l.streams:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { return (*socket)(l).close() }
func (l *listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// stream is one end of a connection. What is written arrives after the link's delay; across a cut it never does, and the
// reader's deadline is what ends the wait.
type stream struct {
	net.Conn
	net      *Net
	from, to string
	out      chan delivery
	done     chan struct{}
	once     sync.Once
}

type delivery struct {
	b  []byte
	at time.Time
}

func (n *Net) stream(c net.Conn, from, to string) net.Conn {
	s := &stream{Conn: c, net: n, from: from, to: to, out: make(chan delivery, streamQueue), done: make(chan struct{})}
	go s.deliver()
	return s
}

// deliver ends with Close, when it has handed over what was written before.
func (s *stream) deliver() {
	defer s.Conn.Close()
	for {
		var d delivery
		select {
		case d = <-s.out:
		case <-s.done:
			select {
			case d = <-s.out:
			default:
				return
			}
		}
		time.Sleep(time.Until(d.at))
		if _, ok := s.net.link(s.from, s.to, false); !ok {
			continue
		}
		if _, err := s.Conn.Write(d.b); err != nil {
			return
		}
	}
}

func (s *stream) Write(b []byte) (int, error) {
	d, _ := s.net.link(s.from, s.to, false)
	select {
	case <-s.done:
		return 0, io.ErrClosedPipe
	default:
	}
	select {
	case s.out <- delivery{slices.Clone(b), time.Now().Add(d)}:
		return len(b), nil
	case <-s.done:
		return 0, io.ErrClosedPipe
	}
}

// Close implements net.Conn. Reads of the other end see the end after what was written.
func (s *stream) Close() error {
	s.once.Do(func() { close(s.done) })
	return s.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes own readers; deliver closes the pipe
}
