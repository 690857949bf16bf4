package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

// The first byte of the called side: go on, or a refusal, which a frame of type frameRefusal explains.
const (
	helloRefused byte = 0
	helloOK      byte = 1
)

// frameRefusal holds an encoded Failure.
const frameRefusal byte = 0xff

const (
	// refusalTimeout bounds how long a refusal may take to be sent and read.
	refusalTimeout = 2 * time.Second
	// lingerBytes bounds what is read and thrown away after a last word, see lingerClose.
	lingerBytes = 64 << 20
)

// Conn is one authenticated connection. One goroutine at a time may read from it and one may write to it; Close and the
// deadlines may be used by any.
type Conn struct {
	net.Conn // TLS

	raw   net.Conn        // below TLS: closing it cuts the connection at once
	tcp   *net.TCPConn    // nil when raw is no TCP connection, or wraps one
	peer  certs.Identity  // of the other side
	alpn  string          //
	drain context.Context // done when the server wants to be rid of the connection; never on the dialling side

	sendHello  bool  // the next Write begins with helloOK (called side; the writer's)
	awaitHello bool  // the next bytes read begin with the hello (dialling side; the reader's)
	refusal    error // what every Read returns after a refusal (the reader's)
}

// Peer is who is at the other end, as its certificate says.
func (c *Conn) Peer() certs.Identity { return c.peer }

// ALPN is the protocol that was chosen.
func (c *Conn) ALPN() string { return c.alpn }

// Draining is closed when the server is shutting down: a handler should come to an end by itself before it is cut off.
// On the dialling side it never is.
func (c *Conn) Draining() <-chan struct{} { return c.drain.Done() }

// Abort cuts the connection without a word, and without blocking. Reads and writes that are under way fail.
func (c *Conn) Abort() { _ = c.raw.Close() } // whatever it says, the connection is of no more use

// Write writes p.
func (c *Conn) Write(p []byte) (int, error) {
	if !c.sendHello {
		return c.Conn.Write(p)
	}
	c.sendHello = false
	n, err := c.Conn.Write(append([]byte{helloOK}, p...))
	return max(0, n-1), err
}

// Read reads what the other side sent. When that refused the connection, the error is a *kv.Error that says why.
func (c *Conn) Read(p []byte) (int, error) {
	for c.awaitHello && len(p) > 0 {
		n, err := c.Conn.Read(p)
		if n == 0 {
			return 0, err
		}
		c.awaitHello = false
		if p[0] != helloOK {
			c.refusal = c.readRefusal(p[0], append([]byte(nil), p[1:n]...))
			break
		}
		if copy(p, p[1:n]) > 0 || err != nil {
			return n - 1, err
		}
	}
	if c.refusal != nil {
		return 0, c.refusal
	}
	return c.Conn.Read(p)
}

func (c *Conn) readRefusal(first byte, rest []byte) error {
	if first != helloRefused {
		return fmt.Errorf("%w: node %s began with byte %#02x", ErrFrame, c.peer, first)
	}
	typ, payload, err := ReadFrame(io.MultiReader(bytes.NewReader(rest), c.Conn), nil)
	if err != nil || typ != frameRefusal {
		return fmt.Errorf("node %s refused the connection without a reason (frame type %d, %v)", c.peer, typ, err)
	}
	var w Failure
	if err := Decode(payload, &w); err != nil {
		return fmt.Errorf("node %s refused the connection: %w", c.peer, err)
	}
	return &refusedError{w.KV()}
}

// refusedError marks an error that refused the whole connection: no request on it was looked at.
type refusedError struct{ reason *kv.Error }

func (e *refusedError) Error() string { return "refused: " + e.reason.Error() }
func (e *refusedError) Unwrap() error { return e.reason }

// refuse tells the caller why it may not go on, and closes the connection.
func (c *Conn) refuse(reason *kv.Error) error {
	payload, err := Encode(NewFailure(reason))
	if err != nil {
		return err
	}
	b, err := AppendFrame([]byte{helloRefused}, frameRefusal, payload)
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(refusalTimeout)); err != nil {
		return err
	}
	if _, err := c.Conn.Write(b); err != nil {
		return err
	}
	c.lingerClose(refusalTimeout)
	return nil
}

// lingerClose ends a connection after a last word that the other side should get to read, although it may still be
// sending: closing a socket with unread bytes in it makes the kernel send a reset, and a reset makes the other side's
// kernel throw away what it had received. So it says goodbye, then reads until the other side has hung up, for at most d.
func (c *Conn) lingerClose(d time.Duration) {
	if tc, ok := c.Conn.(*tls.Conn); ok && tc.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(d)) == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, lingerBytes) // ends with an error, by design
	}
	c.Abort()
}
