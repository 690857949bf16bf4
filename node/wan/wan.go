// Package wan puts the distance between regions into the connections of one process, for `kvmesh dev --wan` and tests:
// what is sent arrives a fixed delay later, and so does the answer. It delays, it does not limit: any number of bytes may
// be on their way, up to a bound on memory, so a stream is as fast as it was, only later. Every node shapes what it dials,
// in both directions; connections that it accepts are shaped by the other side.
package wan

import (
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// Pair is two regions, in either order.
type Pair [2]string

// Matrix says how far apart addresses are.
type Matrix struct {
	// Regions maps every address ("host:port", as it is dialled) to its region. Unknown addresses are not delayed.
	Regions map[string]string
	// RTT is the round trip between two regions. Half of it is the one-way delay.
	RTT map[Pair]time.Duration
	// Default is the round trip between two different regions that RTT does not name, Within the one inside a region.
	Default, Within time.Duration
}

// DefaultMatrix returns typical round trips on the public internet between large data centres:
//
//	             us-east  eu-west  ap-south
//	us-east            –    80 ms    200 ms
//	eu-west                     –    120 ms
//	any other pair of regions        150 ms
func DefaultMatrix(regions map[string]string) Matrix {
	return Matrix{
		Regions: regions,
		RTT: map[Pair]time.Duration{
			{"us-east", "eu-west"}:  80 * time.Millisecond,
			{"us-east", "ap-south"}: 200 * time.Millisecond,
			{"eu-west", "ap-south"}: 120 * time.Millisecond,
		},
		Default: 150 * time.Millisecond,
	}
}

// OneWay is the one-way delay between two regions.
func (m Matrix) OneWay(a, b string) time.Duration {
	if a == b {
		return m.Within / 2
	}
	rtt, ok := m.RTT[Pair{a, b}]
	if !ok {
		rtt, ok = m.RTT[Pair{b, a}]
	}
	if !ok {
		rtt = m.Default
	}
	return rtt / 2
}

// Shaper delays what one node sends and receives. It is safe for concurrent use.
type Shaper struct {
	matrix Matrix
	region string

	mu     sync.Mutex         // guards the two below
	conns  map[*conn]struct{} // open, or still delivering what was written before Close
	closed bool
	wg     sync.WaitGroup // two goroutines a connection
}

// New returns the shaper of a node in region. The matrix must not change afterwards.
func New(m Matrix, region string) *Shaper {
	return &Shaper{matrix: m, region: region, conns: make(map[*conn]struct{})}
}

// Delay is the one-way delay to addr, 0 when its region is unknown.
func (s *Shaper) Delay(addr string) time.Duration {
	region, ok := s.matrix.Regions[addr]
	if !ok {
		return 0
	}
	return s.matrix.OneWay(s.region, region)
}

// WrapConn returns a connection that delays both directions by Delay(addr), or c itself when that is 0. The result owns
// c. Bytes written before Close still arrive, as they do with TCP.
func (s *Shaper) WrapConn(c net.Conn, addr string) net.Conn {
	d := s.Delay(addr)
	if d <= 0 {
		return c
	}
	w := newConn(c, d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close() // as a connection that was made before and is cut now
		w.cut()
		return w
	}
	s.conns[w] = struct{}{}
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		w.receive()
	}()
	go func() {
		defer s.wg.Done()
		w.deliver()
		s.mu.Lock()
		delete(s.conns, w)
		s.mu.Unlock()
	}()
	return w
}

// Close cuts all connections, without delivering what is on its way, and waits for their goroutines.
func (s *Shaper) Close() {
	s.mu.Lock()
	s.closed = true
	conns := slices.Collect(maps.Keys(s.conns))
	s.mu.Unlock()
	for _, c := range conns {
		c.cut()
		_ = c.inner.Close() // it is given up
	}
	s.wg.Wait()
}
