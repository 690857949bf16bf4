package simnet

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of a stream.
type Conn struct {
	net          *Net
	local, far   string
	laddr, raddr net.Addr
	in, out      *half
	read, write  deadline
	once         sync.Once
}

// half is one direction of a stream.
type half struct {
	net      *Net
	from, to string

	mu     sync.Mutex // guards all below
	chunks []chunk
	bytes  int
	last   time.Time // when the newest chunk arrives: nothing overtakes it
	ended  bool      // the writer closed: io.EOF follows the chunks
	broken error     // the stream was reset
	shut   bool      // the reader closed
	moved  chan struct{}
}

type chunk struct {
	b  []byte
	at time.Time
}

// pair makes the two ends of a stream from a dialling host to an address.
func (n *Net) pair(from, to string, addr netip.AddrPort) (near, far *Conn) {
	there := &half{net: n, from: from, to: to, moved: make(chan struct{})}
	back := &half{net: n, from: to, to: from, moved: make(chan struct{})}
	n.mu.Lock()
	n.ports++
	laddr := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), n.ports))
	n.mu.Unlock()
	raddr := net.TCPAddrFromAddrPort(addr)
	near = &Conn{net: n, local: from, far: to, laddr: laddr, raddr: raddr, in: back, out: there}
	far = &Conn{net: n, local: to, far: from, laddr: raddr, raddr: laddr, in: there, out: back}
	for _, c := range []*Conn{near, far} {
		c.read.init()
		c.write.init()
	}
	n.mu.Lock()
	n.streams[near], n.streams[far] = struct{}{}, struct{}{}
	n.mu.Unlock()
	return near, far
}

// wake tells both ends that something changed. The caller holds mu.
func (h *half) wake() {
	close(h.moved)
	h.moved = make(chan struct{})
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.laddr, Addr: c.raddr, Err: err}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	h := c.in
	for {
		deadline := c.read.changed()
		if c.read.passed() {
			return 0, c.opError("read", os.ErrDeadlineExceeded)
		}
		link, since, changed := c.net.state(h.from, h.to)
		now := time.Now()
		h.mu.Lock()
		moved := h.moved
		var wait time.Duration = -1
		switch {
		case h.shut:
			h.mu.Unlock()
			return 0, c.opError("read", net.ErrClosed)
		case h.broken != nil && (!link.Cut || h.broken != errReset):
			err := h.broken
			h.mu.Unlock()
			return 0, c.opError("read", err)
		case link.Cut:
			wait = since.Add(streamTimeout).Sub(now)
			if wait <= 0 {
				h.mu.Unlock()
				c.reset()
				return 0, c.opError("read", syscall.ETIMEDOUT)
			}
		case len(h.chunks) > 0 && !h.chunks[0].at.After(now):
			n := copy(p, h.chunks[0].b)
			if h.bytes -= n; n == len(h.chunks[0].b) {
				h.chunks = h.chunks[1:]
			} else {
				h.chunks[0].b = h.chunks[0].b[n:]
			}
			h.wake()
			h.mu.Unlock()
			return n, nil
		case len(h.chunks) > 0:
			wait = h.chunks[0].at.Sub(now)
		case h.ended:
			h.mu.Unlock()
			return 0, io.EOF
		}
		h.mu.Unlock()
		var timer *time.Timer
		var due <-chan time.Time
		if wait >= 0 {
			timer = time.NewTimer(wait)
			due = timer.C
		}
		select {
		case <-moved:
		case <-changed:
		case <-due:
		case <-deadline:
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	h := c.out
	for {
		deadline := c.write.changed()
		if c.write.passed() {
			return 0, c.opError("write", os.ErrDeadlineExceeded)
		}
		link, _, _ := c.net.state(h.from, h.to)
		delay := link.Delay + c.net.jitter(link.Jitter)
		if c.net.chance(link.Loss) {
			delay += retransmit
		}
		h.mu.Lock()
		switch {
		case h.broken != nil:
			err := h.broken
			h.mu.Unlock()
			return 0, c.opError("write", err)
		case h.ended:
			h.mu.Unlock()
			return 0, c.opError("write", net.ErrClosed)
		case h.shut:
			h.mu.Unlock()
			return 0, c.opError("write", syscall.EPIPE)
		case h.bytes < streamBuffer:
			at := c.net.arrival(delay)
			if at.Before(h.last) {
				at = h.last
			}
			h.last = at
			h.chunks = append(h.chunks, chunk{append([]byte(nil), p...), at})
			h.bytes += len(p)
			h.wake()
			h.mu.Unlock()
			return len(p), nil
		}
		moved := h.moved
		h.mu.Unlock()
		select {
		case <-moved:
		case <-deadline:
		}
	}
}

var errReset error = syscall.ECONNRESET

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.once.Do(func() {
		c.forget()
		c.out.mu.Lock()
		c.out.ended = true
		c.out.wake()
		c.out.mu.Unlock()
		c.in.mu.Lock()
		c.in.shut = true
		c.in.wake()
		c.in.mu.Unlock()
	})
	return nil
}

// reset breaks both directions.
func (c *Conn) reset() {
	c.forget()
	for _, h := range []*half{c.in, c.out} {
		h.mu.Lock()
		if h.broken == nil {
			h.broken = errReset
		}
		h.wake()
		h.mu.Unlock()
	}
}

func (c *Conn) forget() {
	c.net.mu.Lock()
	delete(c.net.streams, c)
	c.net.mu.Unlock()
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.laddr }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.raddr }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	c.read.set(t)
	c.write.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { c.read.set(t); return nil }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.write.set(t); return nil }

// deadline wakes whoever waits when it passes or is moved.
type deadline struct {
	mu    sync.Mutex // guards all below
	at    time.Time
	timer *time.Timer
	ch    chan struct{} // closed when the deadline passes, or is replaced
}

func (d *deadline) init() { d.ch = make(chan struct{}) }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	close(d.ch)
	d.ch = make(chan struct{})
	d.at = t
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		ch := d.ch
		d.timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.ch == ch {
				close(d.ch)
				d.ch = make(chan struct{})
			}
		})
	}
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

func (d *deadline) changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ch
}
