package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// node is one that is asked.
type node struct {
	addr string      // host:port
	tls  *tls.Config // nil: in clear
	head []byte      // what follows the request line of every request, without the end of the head
}

func newNode(o Options, raw string) (*node, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return nil, err
	}
	n := &node{addr: u.Host}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
		n.tls = o.TLS.Clone()
		if n.tls == nil {
			n.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		n.tls.ServerName = u.Hostname()
	}
	if u.Port() == "" {
		n.addr = net.JoinHostPort(u.Hostname(), port)
	}
	n.head = append(n.head, " HTTP/1.1\r\nHost: "+u.Host+"\r\nUser-Agent: kvmesh-bench\r\n"...)
	if o.Token != "" {
		n.head = append(n.head, "Authorization: Bearer "+o.Token+"\r\n"...)
	}
	return n, nil
}

// conn is the connection of one worker, opened when it is needed. Requests are written, and answers read, by the goroutine
// that asks: net/http's client hands each of them from one goroutine to the next, at four times the CPU, and what measures
// must not be slower than what it measures.
type conn struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	node *node

	raw   net.Conn // nil when there is none
	br    *bufio.Reader
	out   []byte
	unarm func() bool // takes back that raw is closed when the context of its opening ends
}

// do sends one request and reads the head of its answer, whose body must be read to its end before the next. ctx is that of
// all requests of the connection. A request that a kept connection has swallowed without a byte of an answer is sent again
// on a new one; all of a Bench's may be.
func (c *conn) do(ctx context.Context, req *http.Request, path, key string, body []byte) (*http.Response, error) {
	c.out = append(append(append(append(append(c.out[:0], req.Method...), ' '), path...), key...), c.node.head...)
	if req.Method == http.MethodPut {
		c.out = append(strconv.AppendInt(append(c.out, "Content-Length: "...), int64(len(body)), 10), "\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), body...)
	for {
		kept := c.raw != nil
		if !kept {
			if err := c.open(ctx); err != nil {
				return nil, err
			}
		}
		_, sendErr := c.raw.Write(c.out) // an answer may have come before the end of the body
		if _, err := c.br.Peek(1); err != nil {
			c.close()
			if kept && ctx.Err() == nil {
				continue
			}
			return nil, errors.Join(sendErr, unexpected(err))
		}
		resp, err := http.ReadResponse(c.br, req)
		if err != nil {
			c.close()
			return nil, err
		}
		resp.Close = resp.Close || sendErr != nil
		return resp, nil
	}
}

// done ends an answer; its connection is kept when all of it was read and the node keeps it, too.
func (c *conn) done(resp *http.Response) {
	if _, err := resp.Body.Read(nil); resp.Close || !errors.Is(err, io.EOF) {
		c.close()
	}
}

func (c *conn) open(ctx context.Context) error {
	raw, err := c.dial(ctx, "tcp", c.node.addr)
	if err != nil {
		return err
	}
	if c.node.tls != nil {
		t := tls.Client(raw, c.node.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			return errors.Join(fmt.Errorf("tls: %w", err), raw.Close())
		}
		raw = t
	}
	c.raw, c.br = raw, bufio.NewReader(raw)
	c.unarm = context.AfterFunc(ctx, func() { _ = raw.Close() }) // ends what is under way
	return nil
}

func (c *conn) close() {
	if c.raw == nil {
		return
	}
	c.unarm()
	_ = c.raw.Close() // nothing more is asked on it
	c.raw = nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
