package wan

import (
	"net"
	"sync"
	"time"
)

const (
	// maxOnTheWay bounds the bytes on their way in each direction of a connection. With 100 ms it allows 80 MB/s.
	maxOnTheWay = 8 << 20
	// perPiece is what a piece costs beside its bytes, so that single bytes are bounded too.
	perPiece = 64
	// readChunk is the size of one read from the connection below.
	readChunk = 32 << 10
	// lingerTimeout bounds the delivery of what was written before Close, after it has come due.
	lingerTimeout = 5 * time.Second
)

// conn is a connection from further away.
//
//	Write → out ─(delay)→ deliver → inner           inner → receive → in ─(delay)→ Read
type conn struct {
	inner net.Conn
	delay time.Duration
	in    *line
	out   *line

	readBy, writeBy *deadline
	closing         sync.Once
}

func newConn(inner net.Conn, delay time.Duration) *conn {
	return &conn{
		inner: inner, delay: delay,
		in: newLine(), out: newLine(),
		readBy: newDeadline(), writeBy: newDeadline(),
	}
}

// receive reads from the connection below until it fails, and puts what it reads on its way.
func (c *conn) receive() {
	buf := make([]byte, readChunk)
	for {
		n, err := c.inner.Read(buf)
		due := time.Now().Add(c.delay)
		if n > 0 && c.in.put(append([]byte(nil), buf[:n]...), due, nil) != nil {
			return // closed on this side: nobody reads any more
		}
		if err != nil {
			c.in.end(err, due)
			return
		}
	}
}

// deliver writes what has come due to the connection below, until the line has ended; then it closes the connection.
func (c *conn) deliver() {
	defer func() { _ = c.inner.Close() }() // both directions are over
	for {
		p, err := c.out.next()
		if err != nil {
			return
		}
		if _, err := c.inner.Write(p); err != nil {
			c.out.fail(err)
			return
		}
	}
}

// Read returns what has arrived. The end of the connection arrives after everything that was sent before it.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return c.in.read(p, c.readBy.done())
}

// Write puts p on its way. It blocks only while too much is.
func (c *conn) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := min(len(p), readChunk)
		piece := append([]byte(nil), p[:n]...)
		if err := c.out.put(piece, time.Now().Add(c.delay), c.writeBy.done()); err != nil {
			return sent, err
		}
		sent, p = sent+n, p[n:]
	}
	return sent, nil
}

// Close ends both directions for this side. What was written is still delivered, then the connection below is closed.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.closing.Do(func() {
		err = nil
		c.readBy.set(time.Time{}) // releases the timers
		c.writeBy.set(time.Time{})
		c.in.fail(net.ErrClosed)
		c.out.end(net.ErrClosed, time.Time{})
		// The other side may take nothing any more, and deliver must come to an end. This fails only when inner is closed,
		// which ends it too.
		_ = c.inner.SetWriteDeadline(time.Now().Add(c.delay + lingerTimeout))
	})
	return err
}

// cut ends both directions at once; the caller closes inner.
func (c *conn) cut() {
	c.in.fail(net.ErrClosed)
	c.out.fail(net.ErrClosed)
}

func (c *conn) LocalAddr() net.Addr  { return c.inner.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.inner.RemoteAddr() }

func (c *conn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.readBy.set(t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.writeBy.set(t)
	return nil
}
