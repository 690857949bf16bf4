package peer

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pool keeps the idle connections of a Client. A goroutine closes those that have been idle for too long.
type pool struct {
	maxIdle int
	timeout time.Duration
	count   prometheus.Gauge
	stop    chan struct{} // closed by close
	stopped chan struct{} // closed when the goroutine has ended

	mu     sync.Mutex               // guards the two below; never held across I/O
	idle   map[string][]*clientConn // by node, the one used last at the end
	closed bool
}

func newPool(maxIdle int, timeout time.Duration, count prometheus.Gauge) *pool {
	p := &pool{
		maxIdle: maxIdle,
		timeout: timeout,
		count:   count,
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		idle:    make(map[string][]*clientConn),
	}
	go p.reap()
	return p
}

// take returns the node's connection that was used last, so that surplus ones grow old, or nil. Connections on which the
// other side has said goodbye are dropped, which spares a request that must not be sent twice an unknown outcome.
func (p *pool) take(node string) *clientConn {
	for {
		c := p.pop(node)
		if c == nil {
			return nil
		}
		if time.Since(c.since) < p.timeout && (c.tcp == nil || quiet(c.tcp)) {
			c.reused = true
			return c
		}
		c.Abort() // nothing is under way on it
	}
}

func (p *pool) pop(node string) *clientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[node]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	list[len(list)-1] = nil
	if p.idle[node] = list[:len(list)-1]; len(list) == 1 {
		delete(p.idle, node)
	}
	p.count.Dec()
	return c
}

// put keeps c for the next request, or closes it when there are enough.
func (p *pool) put(node string, c *clientConn) {
	c.since = time.Now()
	p.mu.Lock()
	keep := !p.closed && len(p.idle[node]) < p.maxIdle
	if keep {
		p.idle[node] = append(p.idle[node], c)
		p.count.Inc()
	}
	p.mu.Unlock()
	if !keep {
		c.Abort()
	}
}

func (p *pool) close() {
	p.mu.Lock()
	already := p.closed
	p.closed = true
	p.mu.Unlock()
	if !already {
		close(p.stop)
	}
	<-p.stopped
}

// reap drops what has been idle for the timeout, at most a quarter of it late, and everything at the end.
func (p *pool) reap() {
	defer close(p.stopped)
	tick := time.NewTicker(max(p.timeout/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.drop(func(c *clientConn) bool { return time.Since(c.since) >= p.timeout })
		case <-p.stop:
			p.drop(func(*clientConn) bool { return true })
			return
		}
	}
}

// drop closes the idle connections that old picks.
func (p *pool) drop(old func(*clientConn) bool) {
	var dropped []*clientConn
	p.mu.Lock()
	for node, list := range p.idle {
		kept := list[:0]
		for _, c := range list {
			if old(c) {
				dropped = append(dropped, c)
			} else {
				kept = append(kept, c)
			}
		}
		clear(list[len(kept):])
		if p.idle[node] = kept; len(kept) == 0 {
			delete(p.idle, node)
		}
	}
	p.mu.Unlock()
	p.count.Sub(float64(len(dropped)))
	for _, c := range dropped {
		c.Abort()
	}
}
