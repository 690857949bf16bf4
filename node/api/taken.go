package api

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"

	"kvmesh/raftstore/kv"
)

// Taken is a connection of LimitListener whose first requests are answered by somebody else than net/http: by the hit path.
// It is for one goroutine.
type Taken struct{ lc *limitedConn }

// Take takes a connection as LimitListener accepted it, before anything has been read from it. It reports false for a
// connection of another listener.
func Take(c net.Conn) (Taken, bool) {
	lc, ok := c.(*limitedConn)
	return Taken{lc}, ok
}

// Raw is the connection below, whose writes are nobody's business. Closing it does not give its slot back; Close does.
func (t Taken) Raw() net.Conn { return t.lc.Conn }

// Close closes the connection and gives its slot back. It may be called by any goroutine, and more than once.
func (t Taken) Close() error { return t.lc.Close() }

// Context is parent with the connection in it, so that SetReason works for what is written with Write.
func (t Taken) Context(parent context.Context) context.Context {
	return context.WithValue(parent, connKey{}, t.lc)
}

// Begin says that a handler has a request of this connection, and End that its answer is complete.
func (t Taken) Begin() {
	t.lc.phrase.Store(nil)
	t.lc.handling.Store(true)
}

// End ends what Begin began.
func (t Taken) End() { t.lc.handling.Store(false) }

// Write writes a piece of a handler's answer. The first one begins with its status line, and takes the phrase of SetReason.
func (t Taken) Write(p []byte) (int, error) { return t.lc.Write(p) }

// HandOver returns the connection as net/http may serve it: the unread bytes come first. They are copied. Nothing else may
// be done with t afterwards.
func (t Taken) HandOver(unread []byte) net.Conn {
	t.lc.unread = append([]byte(nil), unread...)
	return t.lc
}

// HandOverOpaque is HandOver for a connection on which HTTP/2 is spoken: what is written to it is sent as it is.
func (t Taken) HandOverOpaque(unread []byte) net.Conn {
	t.lc.opaque = true
	return t.HandOver(unread)
}

// Secure begins TLS on the connection. What it returns is the connection above TLS, for everything that Taken is for; the
// handshake happens with the first read, or when the caller asks for it. Closing either gives the slot back. A connection
// that negotiates HTTP/2 is given to net/http as the bare *tls.Conn, because it does not look for HTTP/2 on any other.
func (t Taken) Secure(c *tls.Config) (Taken, *tls.Conn) {
	t.lc.opaque = true
	secured := tls.Server(t.lc, c)
	return Taken{&limitedConn{Conn: secured, release: func() {}}}, secured
}

// RefuseClear is the answer to an HTTP request in clear on a port that speaks TLS.
func RefuseClear() []byte {
	return refusalOf(http.StatusBadRequest, kv.Errorf(kv.CodeInvalidParameter,
		"this port speaks TLS, and the request came in clear: write https:// in its URL"))
}

// Count counts the answers of one route that were given outside of Frame.Serve, without looking up a label.
type Count struct {
	requests  counter
	durations observer
	tiers     [len(countedTiers)]counter
	staleness observer
}

type (
	counter  interface{ Inc() }
	observer interface{ Observe(float64) }
)

// countedTiers are those that answer from memory.
var countedTiers = [...]Tier{TierHit, TierStale}

// Count returns the counters of one route's answers of class 2xx.
func (f *Frame) Count(route string) *Count {
	c := &Count{
		requests:  f.metrics.requests.WithLabelValues(route, "2xx"),
		durations: f.metrics.durations.WithLabelValues(route),
		staleness: f.metrics.staleness,
	}
	for i, tier := range countedTiers {
		c.tiers[i] = f.metrics.reads.WithLabelValues(string(tier))
	}
	return c
}

// Answered counts one read that was answered from memory, in the given number of seconds.
func (c *Count) Answered(v *Value, seconds float64) {
	c.requests.Inc()
	c.durations.Observe(seconds)
	for i, tier := range countedTiers {
		if v.Tier == tier {
			c.tiers[i].Inc()
		}
	}
	if v.Staleness >= 0 {
		c.staleness.Observe(v.Staleness.Seconds())
	}
}
