package hitpath

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync/atomic"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

const (
	// readBytes is what of a connection's requests is in memory; a head that does not fit is net/http's.
	readBytes = 8 << 10
	// writeBytes is the room for answers on their way.
	writeBytes = 32 << 10
	// roomForHead is room for the largest head: 1 KiB of metadata, and the rest.
	roomForHead = 2 << 10
	// copied is the largest value that is copied behind its head; a larger one is written from where it is.
	copied = 16 << 10
	// pieceBytes is how much of an answer a client has to take within the limit of phaseWrite.
	pieceBytes = 64 << 10
	// maxAccepted is the longest Authorization that a connection remembers.
	maxAccepted = 256
	// leastUnread is how many bytes net/http waits for before it looks at the second request of a connection.
	leastUnread = 4
)

// conn is a connection on the path. All of it but standing and abandon belongs to its own goroutine.
type conn struct {
	s     *Server
	taken api.Taken
	raw   net.Conn
	base  api.Taken // as it was accepted, below TLS; never changes
	isTLS bool
	standing
	// abandon ends the request that a handler looks at and has not begun to answer; else nil. Whoever swaps it out decides.
	abandon atomic.Pointer[context.CancelFunc]

	in         *[readBytes]byte
	start, end int // of what is unread
	head       head
	recalled   recalled
	answered   bool // a request has been

	out   *[]byte     // answers that have not been written; nil between requests
	vec   net.Buffers // what writeLarge writes at once, in two
	two   [2][]byte
	rest  *restWriter // nil before the first large value
	value api.Value
	epoch epochText // of the last native answer
	key   [kv.MaxKeyBytes]byte
	// accepted is the last Authorization that was good: it still is, and need not be hashed again.
	accepted []byte
}

func newConn(s *Server, taken api.Taken) *conn {
	c := &conn{s: s, taken: taken, raw: taken.Raw(), base: taken, isTLS: s.opts.TLS != nil}
	c.standing.set(phaseNew, s.tick.Load())
	return c
}

// close closes the connection. Behind TLS it says goodbye, which may take a while, and is for the connection's own goroutine.
func (c *conn) close() {
	c.standing.gone()
	_ = c.taken.Close() // there is nobody to tell
}

// serve answers the connection's requests until it ends or is handed over.
func (c *conn) serve() {
	if c.isTLS {
		switch h2, ok := c.secure(); {
		case !ok:
			c.s.forget(c)
			c.close()
			return
		case h2:
			c.s.forget(c)
			c.handOver(whyHTTP2, c.s.http2(), c.raw)
			return
		}
	}
	c.in = c.s.memory.in.Get().(*[readBytes]byte)
	why := c.runSafely()
	c.s.forget(c)
	switch unread := c.in[c.start:c.end]; {
	case why == "":
		c.close()
	case c.speaksHTTP2():
		c.handOver(whyHTTP2, c.s.http2(), c.taken.HandOverOpaque(unread))
	default:
		c.handOver(why, c.s.nexts[0], c.taken.HandOver(unread))
	}
	c.release()
	c.s.memory.in.Put(c.in)
}

// handOver gives what the connection has become to another server, unless its end has been decided.
func (c *conn) handOver(why string, to *next, nc net.Conn) {
	if !c.standing.gone() {
		_ = nc.Close() // there is nobody to tell
		return
	}
	c.s.metrics.handed.WithLabelValues(why).Inc()
	to.give(nc)
}

// runSafely is run, and a panic within it costs this connection only.
func (c *conn) runSafely() (why string) {
	defer func() {
		if p := recover(); p != nil {
			c.s.log.Error("panic on the hit path", "panic", p, "stack", string(debug.Stack()))
			why = ""
		}
	}()
	return c.run()
}

// run answers requests, and returns why the connection is to be handed over, "" when it has ended.
func (c *conn) run() (why string) {
	for {
		why, ok := c.answerAll()
		if !ok || !c.flush() {
			return ""
		}
		if why != "" {
			return why
		}
		if c.s.stopping.Load() && c.start == c.end {
			return ""
		}
		if why, ok = c.read(); !ok {
			return why
		}
	}
}

// read reads more of the next request. When it reports false, the connection has ended, or is to be handed over.
func (c *conn) read() (why string, ok bool) {
	switch {
	case c.start == c.end:
		c.start, c.end = 0, 0
		c.release()
	case c.start > 0:
		c.end = copy(c.in[:], c.in[c.start:c.end])
		c.start = 0
	case c.end == len(c.in):
		return whyLong, false
	}
	switch began := c.end > 0 && (!c.answered || c.end >= leastUnread); {
	case began && phase(c.standing.word.Load()&7) != phaseHead:
		c.standing.headBegins(c.s.tick.Load())
	case !began && c.answered:
		c.standing.set(phaseIdle, c.s.tick.Load())
	}
	n, err := c.raw.Read(c.in[c.end:])
	c.end += n
	if err == nil {
		return "", true
	}
	// What has come of a head may deserve an answer. Behind TLS a client that goes without a goodbye is an unexpected end.
	if (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) && c.end > 0 && (!c.answered || c.end >= leastUnread) {
		return whyEnd, false
	}
	return "", false
}

// answerAll answers all complete requests that have come. ok is false when the connection has ended.
func (c *conn) answerAll() (why string, ok bool) {
	for c.start < c.end {
		unread := c.in[c.start:c.end]
		if c.answered && len(unread) < leastUnread {
			return "", true
		}
		switch c.parse(unread) {
		case more:
			return "", true
		case doubtful:
			return whyRequest, true
		}
		w, ours := c.head.route(unread, &c.key)
		switch {
		case !ours:
			return whyRequest, true
		case c.s.draining.Load():
			return whyDraining, true
		}
		if !c.answer(&w) {
			done, keep := c.answerSlowly(unread[:c.head.next])
			if !done {
				return whyRequest, true
			}
			if !keep {
				return "", false
			}
		}
		c.start += c.head.next
		c.head = head{}
		c.answered = true
	}
	return "", true
}

// flush writes the answers that wait to be written, and reports false when the connection has ended.
func (c *conn) flush() bool {
	if c.out == nil || len(*c.out) == 0 {
		return true
	}
	c.standing.set(phaseWrite, c.s.tick.Load())
	_, err := c.raw.Write(*c.out)
	*c.out = (*c.out)[:0]
	if err != nil {
		c.cut()
	}
	return err == nil
}

// room returns the memory for answers, with room for a head and a value that is copied.
func (c *conn) room(body int) ([]byte, bool) {
	if c.out == nil {
		c.out = c.s.memory.out.Get().(*[]byte)
	}
	if len(*c.out)+roomForHead+body > cap(*c.out) && !c.flush() {
		return nil, false
	}
	return *c.out, true
}

// release gives the memory for answers back. An idle connection keeps no value alive that the cache has dropped.
func (c *conn) release() {
	c.value.Bytes, c.value.Metadata = nil, nil
	if c.out == nil {
		return
	}
	*c.out = (*c.out)[:0]
	if cap(*c.out) == writeBytes {
		c.s.memory.out.Put(c.out)
	}
	c.out = nil
}
