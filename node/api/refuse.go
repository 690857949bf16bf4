package api

import (
	"net"
	"strconv"
	"sync"
	"time"

	"kvmesh/raftstore/kv"
)

const (
	// maxRefusals is how many connections beyond the limit are told so at a time; each costs a file. More are closed.
	maxRefusals = 256
	// refusalTimeout is how long one of them may take: a client that has not asked by then, or does not read, is not told.
	refusalTimeout = time.Second
)

// refuser tells the clients of connections that a listener has no room for that they should come again.
type refuser struct {
	text []byte
	wg   sync.WaitGroup // one for each of conns

	mu    sync.Mutex // guards what follows
	ended bool
	conns map[net.Conn]struct{}
}

func newRefuser(maxConns int) *refuser {
	e := kv.Errorf(kv.CodeOverloaded, "the node has %d connections, which is its limit; try again, "+
		"with fewer connections at once or at another node", maxConns)
	body, err := marshal(errorJSON{errorBody(e)})
	if err != nil { // it is a struct of strings
		panic(err)
	}
	text := "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n" +
		"Cache-Control: no-store\r\nRetry-After: 1\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\nConnection: close\r\n\r\n"
	return &refuser{text: append([]byte(text), body...), conns: make(map[net.Conn]struct{})}
}

// refuse answers whatever c asks, and closes it. It does not wait for that.
func (r *refuser) refuse(c net.Conn) {
	r.mu.Lock()
	tell := !r.ended && len(r.conns) < maxRefusals
	if tell {
		r.conns[c] = struct{}{}
		r.wg.Add(1)
	}
	r.mu.Unlock()
	if !tell {
		_ = c.Close() // nobody is told
		return
	}
	go func() {
		defer r.wg.Done()
		r.tell(c)
		_ = c.Close() // it has been told, or is gone
		r.mu.Lock()
		delete(r.conns, c)
		r.mu.Unlock()
	}()
}

// tell waits for the client to ask, because clients take an answer that comes before for a mistake, answers, and waits for the
// client to close: what it still sends would reset the connection, and the answer with it.
func (r *refuser) tell(c net.Conn) {
	const tlsHandshake = 0x16 // the first byte of a client that would not understand the answer
	var buf [1024]byte
	if c.SetDeadline(time.Now().Add(refusalTimeout)) != nil {
		return
	}
	if n, err := c.Read(buf[:]); err != nil || n == 0 || buf[0] == tlsHandshake {
		return
	}
	if _, err := c.Write(r.text); err != nil {
		return
	}
	if half, ok := c.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		for {
			if _, err := c.Read(buf[:]); err != nil {
				return
			}
		}
	}
}

// end closes what is left, and waits until nobody is told any more.
func (r *refuser) end() {
	r.mu.Lock()
	r.ended = true
	for c := range r.conns {
		_ = c.Close() // the listener has ended
	}
	r.mu.Unlock()
	r.wg.Wait()
}
