package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxInbound bounds the streams that others have open to this node. memberlist bounds only the state exchanges among
	// them, after it has read from each.
	maxInbound = 128
	// maxDelayed bounds the packets that a Shaper holds back: 4096 are 5 MB.
	maxDelayed = 4096
)

// transport is a memberlist transport over a Network: delays by the Shaper, a cap on streams, and a shutdown that leaves
// no stream behind.
type transport struct {
	net     Network
	shaper  Shaper
	metrics *metrics
	pc      net.PacketConn
	ln      net.Listener
	self    netip.AddrPort // as others reach it
	bound   netip.AddrPort

	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context // ends with Shutdown
	cancel  context.CancelFunc
	wg      sync.WaitGroup // the two readers
	delayed atomic.Int64
	delays  sync.WaitGroup // packets held back

	mu      sync.Mutex // guards what follows; held for map operations only
	closed  bool
	conns   map[*trackedConn]struct{}
	inbound int
	dials   map[string]*dialOutcome
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// newTransport listens on bind. advertiseHost may be empty unless bind is a wildcard.
func newTransport(n Network, bind, advertiseHost string, s Shaper, m *metrics) (*transport, error) {
	ctx, cancel := context.WithCancel(context.Background())
	t := &transport{
		net: n, shaper: s, metrics: m,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		ctx: ctx, cancel: cancel,
		conns: make(map[*trackedConn]struct{}), dials: make(map[string]*dialOutcome),
	}
	var err error
	if t.pc, t.ln, err = n.Listen(ctx, bind); err != nil {
		cancel()
		return nil, err
	}
	if t.bound, err = netip.ParseAddrPort(t.pc.LocalAddr().String()); err == nil {
		t.self, err = advertised(ctx, t.bound, advertiseHost)
	}
	if err != nil {
		return nil, errors.Join(err, t.Shutdown())
	}
	t.wg.Go(t.readPackets)
	t.wg.Go(t.acceptStreams)
	return t, nil
}

func advertised(ctx context.Context, bound netip.AddrPort, host string) (netip.AddrPort, error) {
	if host == "" {
		if bound.Addr().IsUnspecified() {
			return netip.AddrPort{}, fmt.Errorf("gossip: listening on all interfaces (--gossip %s): say with --advertise "+
				"which address the other nodes must use", bound)
		}
		return netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()), nil
	}
	ips, err := resolveHost(ctx, host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("gossip: --advertise %s: %w", host, err)
	}
	return netip.AddrPortFrom(ips[0], bound.Port()), nil
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.self.Addr().AsSlice(), int(t.self.Port()), nil
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	dst := net.UDPAddrFromAddrPort(to)
	if t.shaper == nil {
		_, err := t.pc.WriteTo(b, dst)
		return time.Now(), err
	}
	d := t.shaper.Delay(addr)
	if d <= 0 {
		_, err := t.pc.WriteTo(b, dst)
		return time.Now(), err
	}
	t.mu.Lock()
	ok := !t.closed && t.delayed.Load() < maxDelayed
	if ok {
		t.delayed.Add(1)
		t.delays.Add(1) // never after Shutdown has begun to wait
	}
	t.mu.Unlock()
	if !ok {
		t.metrics.dropped.WithLabelValues("delay").Inc()
		return time.Now(), nil // lost on the way, as packets are
	}
	held := append([]byte(nil), b...)
	time.AfterFunc(d, func() {
		defer t.delays.Done()
		t.delayed.Add(-1)
		if _, err := t.pc.WriteTo(held, dst); err != nil {
			t.metrics.dropped.WithLabelValues("delay").Inc()
		}
	})
	return time.Now(), nil
}

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	c, err := t.net.Dial(ctx, addr)
	t.mu.Lock()
	if o := t.dials[addr]; o != nil {
		o.err = err
	}
	t.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if t.shaper != nil {
		c = t.shaper.WrapConn(c, addr)
	}
	return t.track(c, false)
}

// dialOutcome is how the last dial to an address went. memberlist turns errors into text before Join returns them.
type dialOutcome struct{ err error }

// watchDials notes how dials to addr go until done is called, which returns the last dial's error.
func (t *transport) watchDials(addr string) (done func() error) {
	o := &dialOutcome{}
	t.mu.Lock()
	t.dials[addr] = o
	t.mu.Unlock()
	return func() error {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.dials[addr] == o {
			delete(t.dials, addr)
		}
		return o.err
	}
}

// Shutdown implements memberlist.Transport: packets on their way still leave, then everything is closed.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil
	}
	t.closed = true
	open := make([]*trackedConn, 0, len(t.conns))
	for c := range t.conns {
		open = append(open, c)
	}
	t.mu.Unlock()
	t.delays.Wait() // at most the longest delay of the Shaper; the farewell is among them
	t.cancel()
	err := errors.Join(t.pc.Close(), t.ln.Close())
	for _, c := range open {
		_ = c.Close() // an exchange that is cut off has its own error
	}
	t.wg.Wait()
	return err
}

// maxRetryDelay bounds the pause after an error of a socket that is still open (out of file descriptors, say).
const maxRetryDelay = time.Second

func (t *transport) readPackets() {
	buf := make([]byte, 64<<10)
	for delay := time.Duration(0); ; {
		n, from, err := t.pc.ReadFrom(buf)
		now := time.Now()
		if err != nil {
			if delay = min(delay*2+5*time.Millisecond, maxRetryDelay); !t.pause(delay) {
				return
			}
			continue
		}
		delay = 0
		if n == 0 {
			continue
		}
		select {
		case t.packets <- &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: now}:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) acceptStreams() {
	for delay := time.Duration(0); ; {
		c, err := t.ln.Accept()
		if err != nil {
			if delay = min(delay*2+5*time.Millisecond, maxRetryDelay); !t.pause(delay) {
				return
			}
			continue
		}
		delay = 0
		tc, err := t.track(c, true)
		if err != nil {
			t.metrics.dropped.WithLabelValues("stream").Inc()
			continue
		}
		select {
		case t.streams <- tc:
		case <-t.ctx.Done():
			_ = tc.Close() // nothing was exchanged
			return
		}
	}
}

// pause waits for d and reports false when the transport has been shut down.
func (t *transport) pause(d time.Duration) bool {
	select {
	case <-t.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// trackedConn is a stream that Shutdown can close.
type trackedConn struct {
	net.Conn
	t       *transport
	inbound bool
	once    sync.Once
}

var errTooManyStreams = errors.New("too many streams, or shut down")

func (t *transport) track(c net.Conn, inbound bool) (net.Conn, error) {
	tc := &trackedConn{Conn: c, t: t, inbound: inbound}
	t.mu.Lock()
	ok := !t.closed && (!inbound || t.inbound < maxInbound)
	if ok {
		t.conns[tc] = struct{}{}
		if inbound {
			t.inbound++
		}
	}
	t.mu.Unlock()
	if !ok {
		return nil, errors.Join(errTooManyStreams, c.Close())
	}
	return tc, nil
}

// Close implements net.Conn.
func (c *trackedConn) Close() error {
	c.once.Do(func() {
		c.t.mu.Lock()
		defer c.t.mu.Unlock()
		delete(c.t.conns, c)
		if c.inbound {
			c.t.inbound--
		}
	})
	return c.Conn.Close()
}
