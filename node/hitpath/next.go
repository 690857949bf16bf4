package hitpath

import (
	"net"
	"net/http"
	"sync"
)

// next is a server behind the path, and its listener: its connections are those that the path gives up.
type next struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func newNext(server *http.Server) *next {
	return &next{server: server, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give hands a connection over, or closes it when the server has ended.
func (n *next) give(c net.Conn) {
	select {
	case n.conns <- c:
	case <-n.closed:
		_ = c.Close() // the node ends, and the client is told so by that
	}
}

// Accept returns the next connection that is given.
func (n *next) Accept() (net.Conn, error) {
	select {
	case c := <-n.conns:
		return c, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept. It may be called more than once.
func (n *next) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}

// Addr is the public listener's.
func (n *next) Addr() net.Addr { return n.addr }
