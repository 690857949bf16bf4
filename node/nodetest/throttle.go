package nodetest

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Throttle stands before a TCP port, under another loopback address, and lets each connection through at a limited rate:
// what takes a moment on one machine takes long enough to be interrupted.
type Throttle struct {
	ln   net.Listener
	to   string
	rate atomic.Int64 // bytes/s of each connection and direction; 0 = as fast as it goes

	mu    sync.Mutex // guards the two below
	conns map[net.Conn]struct{}
	ended bool
	done  sync.WaitGroup
}

// throttleStep is how often a connection may go on.
const throttleStep = 20 * time.Millisecond

// NewThrottle listens on addr and passes everything on to the address to, until the test ends.
func NewThrottle(t testing.TB, addr, to string) *Throttle {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &Throttle{ln: ln, to: to, conns: make(map[net.Conn]struct{})}
	p.done.Go(p.accept)
	t.Cleanup(func() {
		if err := ln.Close(); err != nil {
			t.Error(err)
		}
		p.Cut()
		p.mu.Lock()
		p.ended = true
		p.mu.Unlock()
		p.Cut()
		p.done.Wait()
	})
	return p
}

// Rate sets the limit, in bytes a second of each connection and direction; 0 lifts it.
func (p *Throttle) Rate(bytes int64) { p.rate.Store(bytes) }

// Cut breaks all connections.
func (p *Throttle) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close() // that is what is wanted
	}
}

func (p *Throttle) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil { // closed
			return
		}
		out, err := net.Dial("tcp", p.to)
		if err != nil { // nobody is there: the other side sees the connection end
			_ = in.Close()
			continue
		}
		if !p.add(in, out) {
			return
		}
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			p.done.Go(func() { p.pass(pair[0], pair[1]) })
		}
	}
}

func (p *Throttle) add(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.ended {
			_ = c.Close() // nobody waits for it
			continue
		}
		p.conns[c] = struct{}{}
	}
	return !p.ended
}

// pass copies one direction of a connection until it ends, and ends both then.
func (p *Throttle) pass(to, from net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n := len(buf)
		rate := p.rate.Load()
		if rate > 0 {
			n = min(n, max(1, int(rate*int64(throttleStep)/int64(time.Second))))
		}
		got, err := from.Read(buf[:n])
		if _, werr := to.Write(buf[:got]); err == nil {
			err = werr
		}
		if err != nil {
			break
		}
		if rate > 0 {
			time.Sleep(throttleStep * time.Duration(got) / time.Duration(n))
		}
	}
	p.mu.Lock()
	delete(p.conns, from)
	p.mu.Unlock()
	_ = errors.Join(from.Close(), to.Close()) // whatever it says, both are done
}
