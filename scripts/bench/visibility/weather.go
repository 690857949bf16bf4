package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"kvmesh/node/peer"
)

const (
	// share of the packets, and of the streams at any moment, that are disturbed.
	share = 0.10
	// A stream that is disturbed stalls, nothing gets through it in either direction, for stallMin to stallMax; one in cutOf
	// of them is reset instead.
	stallMin, stallMax = 100 * time.Millisecond, 700 * time.Millisecond
	cutOf              = 8
	// gustEvery is how often streams are picked.
	gustEvery = 100 * time.Millisecond
	// A packet that is disturbed is lost, arrives twice, or arrives up to lateMax later, a third of them each.
	lateMin, lateMax = 50 * time.Millisecond, 500 * time.Millisecond
)

// weather is what the network below the delays is like. What a connection is for is told in clear by the first thing that
// is written to it, the protocol list of the TLS ClientHello (RFC 7301).
type weather struct {
	cancel context.CancelFunc
	tasks  sync.WaitGroup // the gusts, and packets that are late

	mu     sync.Mutex // guards all below; held for map operations and draws only
	rng    *rand.Rand
	mode   string
	closed bool
	open   map[*stream]struct{}
}

func newWeather(seed uint64) *weather {
	ctx, cancel := context.WithCancel(context.Background())
	w := &weather{cancel: cancel, rng: rand.New(rand.NewPCG(seed, 1)), mode: healthy, open: make(map[*stream]struct{})}
	w.tasks.Go(func() { w.gusts(ctx) })
	return w
}

// set changes the weather to that of a round. With the feeds cut, those that run are reset.
func (w *weather) set(mode string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = mode
	for s := range w.open {
		if mode == feedCut && s.feed {
			_ = s.Conn.Close() // it is a reset: nobody is told anything
		}
	}
}

// close ends the gusts and waits for packets that are late.
func (w *weather) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.cancel()
	w.tasks.Wait()
}

// gusts disturbs streams so that about share of them are disturbed at any moment.
func (w *weather) gusts(ctx context.Context) {
	tick := time.NewTicker(gustEvery)
	defer tick.Stop()
	p := share * float64(gustEvery) / float64((stallMin+stallMax)/2)
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		w.mu.Lock()
		if w.mode == disturbed {
			for s := range w.open {
				switch {
				case w.rng.Float64() >= p:
				case w.rng.IntN(cutOf) == 0:
					_ = s.Conn.Close() // as above
				default:
					s.stall(stallMin + rand.N(stallMax-stallMin))
				}
			}
		}
		w.mu.Unlock()
	}
}

// dial opens a stream.
func (w *weather) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s := &stream{Conn: c, w: w, gone: make(chan struct{})}
	w.mu.Lock()
	w.open[s] = struct{}{}
	w.mu.Unlock()
	return s, nil
}

// stream is one dialled connection. Reads and writes of one that stalls wait and ignore deadlines: those of the
// connections above it, which package wan queues, hold nevertheless.
type stream struct {
	net.Conn
	w    *weather
	feed bool // under w.mu
	said bool // the first write was seen; only the writer touches it

	until atomic.Int64 // unix nanoseconds at which it goes on
	once  sync.Once
	gone  chan struct{} // closed by Close
}

func (s *stream) stall(d time.Duration) { s.until.Store(time.Now().Add(d).UnixNano()) }

// wait returns when the stream does not stall, or is closed.
func (s *stream) wait() {
	for {
		left := time.Until(time.Unix(0, s.until.Load()))
		if left <= 0 {
			return
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-s.gone:
			t.Stop()
			return
		}
	}
}

// Read implements net.Conn.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.wait() // what has come did not come yet
	return n, err
}

// Write implements net.Conn.
func (s *stream) Write(p []byte) (int, error) {
	if !s.said {
		s.said = true
		if bytes.Contains(p, []byte(peer.ALPNFeed)) {
			s.w.mu.Lock()
			s.feed = true
			shut := s.w.mode == feedCut
			s.w.mu.Unlock()
			if shut {
				return 0, syscall.ECONNRESET
			}
		}
	}
	s.wait()
	return s.Conn.Write(p)
}

// Close implements net.Conn.
func (s *stream) Close() error {
	s.once.Do(func() {
		close(s.gone)
		s.w.mu.Lock()
		defer s.w.mu.Unlock()
		delete(s.w.open, s)
	})
	return s.Conn.Close()
}

// gossipNetwork opens gossip's sockets.
type gossipNetwork struct{ w *weather }

// Listen implements gossip.Network.
func (g gossipNetwork) Listen(ctx context.Context, hostport string) (net.PacketConn, net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", hostport)
	if err != nil {
		return nil, nil, err
	}
	pc, err := lc.ListenPacket(ctx, "udp", hostport)
	if err != nil {
		_ = l.Close() // nobody has connected yet
		return nil, nil, err
	}
	return &packets{pc, g.w}, l, nil
}

// Dial implements gossip.Network.
func (g gossipNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return g.w.dial(ctx, "tcp", addr)
}

// packets is a datagram socket in the weather.
type packets struct {
	net.PacketConn
	w *weather
}

// WriteTo implements net.PacketConn.
func (p *packets) WriteTo(b []byte, addr net.Addr) (int, error) {
	p.w.mu.Lock()
	fate, late := -1, time.Duration(0)
	if p.w.mode == disturbed && !p.w.closed && p.w.rng.Float64() < share {
		if fate = p.w.rng.IntN(3); fate == 2 {
			late = lateMin + time.Duration(p.w.rng.Int64N(int64(lateMax-lateMin)))
			p.w.tasks.Add(1) // under mu: never after close has begun to wait
		}
	}
	p.w.mu.Unlock()
	switch fate {
	case 0:
		return len(b), nil
	case 1:
		if _, err := p.PacketConn.WriteTo(b, addr); err != nil {
			return 0, err
		}
	case 2:
		held := bytes.Clone(b)
		time.AfterFunc(late, func() {
			defer p.w.tasks.Done()
			_, _ = p.PacketConn.WriteTo(held, addr) // one that fails now is lost, as packets are
		})
		return len(b), nil
	}
	return p.PacketConn.WriteTo(b, addr)
}
