package api

import (
	"bytes"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	"kvmesh/raftstore/kv"
)

// DefaultMaxConns is the most connections that one HTTP listener holds: each costs a file and tens of KiB.
const DefaultMaxConns = 8192

// LimitListener returns a listener that holds at most maxConns connections at once (0 = DefaultMaxConns). Further ones
// are answered 503 with Retry-After and closed; beyond a few hundred of those at a time, closed at once. Its connections
// are what NewServer expects.
func LimitListener(l net.Listener, maxConns int) net.Listener {
	if maxConns <= 0 {
		maxConns = DefaultMaxConns
	}
	return &limitListener{Listener: l, slots: make(chan struct{}, maxConns), refuser: newRefuser(maxConns)}
}

type limitListener struct {
	net.Listener
	slots   chan struct{} // one element per open connection
	refuser *refuser
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.slots })}, nil
		default:
			l.refuser.refuse(c)
		}
	}
}

// Close closes the listener, and the connections that are being refused.
func (l *limitListener) Close() error {
	err := l.Listener.Close()
	l.refuser.end()
	return err
}

// limitedConn is a connection that gives its slot back when it is closed.
type limitedConn struct {
	net.Conn
	release func()
	// handling is true from the moment a handler has a request of this connection until its answer is complete. What
	// net/http writes outside of it are its own refusals.
	handling atomic.Bool
	// phrase replaces the reason phrase of the next status line that it fits; nil = none does.
	phrase atomic.Pointer[phrase]
	// opaque says that what is written is not HTTP/1 (TLS records, HTTP/2's frames), and nothing in it is looked for. It
	// is set before the connection is given to whoever writes.
	opaque bool
	// unread is what somebody has read already of a connection that net/http then serves; see Taken.
	unread []byte
}

// Read reads what is unread first. net/http never reads twice at the same time.
func (c *limitedConn) Read(p []byte) (int, error) {
	if len(c.unread) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.unread)
	if c.unread = c.unread[n:]; len(c.unread) == 0 {
		c.unread = nil
	}
	return n, nil
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer before it closes, so that a client that is still sending can read it.
func (c *limitedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Write sends p, or, when p is a refusal by net/http in plain text, the same refusal as this surface words it.
func (c *limitedConn) Write(p []byte) (int, error) {
	if c.opaque {
		return c.Conn.Write(p)
	}
	told, ok := c.retold(p)
	if !ok {
		return c.Conn.Write(p)
	}
	if _, err := c.Conn.Write(told); err != nil {
		return 0, err
	}
	return len(p), nil
}

// retold returns what is sent instead of p, if anything is.
func (c *limitedConn) retold(p []byte) ([]byte, bool) {
	if !c.handling.Load() {
		return refusal(p)
	}
	ph := c.phrase.Load()
	if ph == nil {
		return nil, false
	}
	told, ok := ph.in(p)
	if ok {
		c.phrase.Store(nil)
	}
	return told, ok
}

// refusal rewords what net/http answers, in one write, to a request that it cannot parse: a status line, exactly these
// two headers, and the status again as text.
func refusal(p []byte) ([]byte, bool) {
	const plainHeaders = "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	rest, ok := bytes.CutPrefix(p, []byte("HTTP/1.1 "))
	if !ok {
		return nil, false
	}
	line, text, ok := bytes.Cut(rest, []byte(plainHeaders))
	if !ok || len(line) < 3 || bytes.ContainsAny(line, "\r\n") {
		return nil, false
	}
	status, err := strconv.Atoi(string(line[:3]))
	if err != nil || status < 400 {
		return nil, false
	}
	e := kv.Errorf(kv.CodeInvalidParameter, "%s", refusalText(status, text))
	if status >= 500 {
		e.Code = kv.CodeUnsupportedByPeer
	}
	told := refusalOf(status, e)
	return told, told != nil
}

// refusalOf is the whole answer to a request that no handler sees, after which the connection is closed; nil when there is
// none.
func refusalOf(status int, e *kv.Error) []byte {
	body, err := marshal(errorJSON{errorBody(e)})
	if err != nil {
		return nil
	}
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 " + strconv.Itoa(status) + " " + http.StatusText(status))
	b.WriteString("\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store")
	b.WriteString("\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n")
	b.Write(body)
	return b.Bytes()
}

func refusalText(status int, text []byte) string {
	switch {
	case status == http.StatusRequestHeaderFieldsTooLarge:
		return "the request line and the headers have more than " + strconv.Itoa(maxHeaderBytes>>10) + " KiB"
	case bytes.Equal(text, []byte("400 Bad Request")):
		return "the request is not valid HTTP/1.1: check the line, the headers and the escapes in its URL " +
			"(after % come two hex digits, and %25 is a percent sign)"
	}
	return "the request is not valid: " + string(text)
}
