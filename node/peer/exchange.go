package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kvmesh/raftstore/kv"
)

// lateAnswer is how long to wait for the answer that explains why the other side took no more of a body.
const lateAnswer = time.Second

// errGoodbye says that the node has not looked at the request.
var errGoodbye = errors.New("the node is shutting down")

// clientConn is a connection that a Client sends requests on.
type clientConn struct {
	*Conn
	br     *bufio.Reader
	wbuf   []byte
	reused bool      // it was idle before
	since  time.Time // idle since; the pool's
}

// exchange is one call on its way: its state is that of one goroutine, and after the head of a streamed answer that of
// the stream's reader.
type exchange struct {
	cl     *Client
	ctx    context.Context
	cancel context.CancelFunc
	node   string
	call   Call
	args   []byte
	ends   []func() // what to release at the end, last in first out

	conn     *clientConn
	unhook   func() bool // takes back the cutting of conn at ctx's end
	sent     bool        // some of the request may have left, on any connection
	answered bool        // some of an answer has come
	bodyRead bool        // some of call.BodyReader has been read
}

func (x *exchange) onEnd(f func()) { x.ends = append(x.ends, f) }

func (x *exchange) end() {
	for i := len(x.ends) - 1; i >= 0; i-- {
		x.ends[i]()
	}
	x.ends = nil
}

// run sends the request, twice if the rule allows it and it is needed.
func (x *exchange) run() (*Reply, error) {
	conn := x.cl.pool.take(x.node)
	for {
		var err error
		if conn == nil {
			conn, err = x.dial()
		}
		if err == nil {
			var reply *Reply
			x.attach(conn)
			if reply, err = x.roundTrip(); err == nil {
				return reply, nil
			}
		}
		var answer *kv.Error
		var refused *refusedError
		switch {
		case errors.As(err, &refused):
			x.end()
			return nil, refused.reason
		case x.answered && errors.As(err, &answer):
			x.end()
			return nil, answer
		case conn != nil && x.mayRetry():
			x.cl.metrics.retries.Inc()
			x.cl.log.Debug("an idle connection was dead, sending again", "node", x.node, "method", x.call.Method, "err", err)
			conn = nil // a fresh one: the other idle ones are as old
			continue
		}
		err = x.fail(err) // looks at ctx, which end cancels
		x.end()
		return nil, err
	}
}

// mayRetry is the rule: only what an idle connection has swallowed, before any byte of an answer, while there is time; and
// never twice what may already be on its way, unless that does no harm.
func (x *exchange) mayRetry() bool {
	if !x.conn.reused || x.answered || x.ctx.Err() != nil || x.sent && !x.call.Idempotent {
		return false
	}
	if !x.bodyRead {
		return true
	}
	s, ok := x.call.BodyReader.(io.Seeker)
	if !ok {
		return false
	}
	_, err := s.Seek(0, io.SeekStart)
	return err == nil
}

func (x *exchange) fail(err error) *CallError {
	if x.ctx.Err() != nil { // the connection was cut for that reason
		err = context.Cause(x.ctx)
		if x.cl.base.Err() != nil {
			err = errors.New("the node is shutting down")
		}
	}
	return &CallError{Node: x.node, Method: x.call.Method, MaybeSent: x.sent, Idempotent: x.call.Idempotent, Err: err}
}

func (x *exchange) dial() (*clientConn, error) {
	x.cl.metrics.dials.Inc()
	c, err := x.cl.dialer.Dial(x.ctx, x.node, ALPNRPC)
	if err != nil {
		return nil, err
	}
	return &clientConn{Conn: c, br: bufio.NewReaderSize(c, smallBody)}, nil
}

// attach makes conn the one that ctx's end cuts.
func (x *exchange) attach(conn *clientConn) {
	x.conn = conn
	x.unhook = context.AfterFunc(x.ctx, conn.Abort)
}

// detach gives the connection back to the pool, or cuts it when it is not at the beginning of a next request.
func (x *exchange) detach(reusable bool) {
	if x.unhook() && reusable && x.conn.br.Buffered() == 0 {
		x.cl.pool.put(x.node, x.conn)
		return
	}
	x.conn.Abort()
}

// roundTrip sends the request and reads the answer. It leaves the connection in the pool or cut, unless the answer is a
// stream, whose Close does that.
func (x *exchange) roundTrip() (*Reply, error) {
	sendErr := x.send()
	if sendErr != nil {
		if !x.sent || x.ctx.Err() != nil || x.conn.SetReadDeadline(time.Now().Add(lateAnswer)) != nil {
			x.detach(false)
			return nil, sendErr
		}
		// The other side may have answered before the end of the body, and taken no more of it.
	}
	reply, err := x.readAnswer(sendErr == nil)
	if err != nil && sendErr != nil && !x.answered {
		return nil, sendErr
	}
	return reply, err
}

// send writes the request and its body.
func (x *exchange) send() error {
	deadline, _ := x.ctx.Deadline()
	left := time.Until(deadline)
	if left <= 0 {
		return context.DeadlineExceeded
	}
	c := x.conn
	h := requestHeader{method: x.call.Method, timeout: left, hops: x.call.Hops, bodySize: x.call.BodySize}
	var err error
	if c.wbuf, err = appendRequest(c.wbuf[:0], h, x.args); err != nil {
		return err
	}
	body := x.call.Body
	if x.call.BodyReader != nil {
		body = nil
	}
	if len(body) <= smallBody {
		c.wbuf, body = append(c.wbuf, body...), nil
	}
	err = x.write(c.wbuf)
	if cap(c.wbuf) > keepBuffer {
		c.wbuf = nil
	}
	if err == nil && len(body) > 0 {
		err = x.write(body)
	}
	if err == nil && x.call.BodyReader != nil {
		err = x.sendReader()
	}
	return err
}

func (x *exchange) write(b []byte) error {
	n, err := x.conn.Write(b)
	if n > 0 || err == nil { // a write that failed at its first byte has sent nothing that could be decrypted
		x.sent = true
	}
	return err
}

func (x *exchange) sendReader() error {
	left := x.call.BodySize
	buf := make([]byte, min(left, copyChunk))
	for left > 0 {
		n, err := x.call.BodyReader.Read(buf[:min(left, int64(len(buf)))])
		x.bodyRead = true
		if n > 0 {
			if err := x.write(buf[:n]); err != nil {
				return err
			}
			left -= int64(n)
		}
		if err != nil && left > 0 {
			x.conn.Abort() // the node must not wait for the rest
			return fmt.Errorf("the body of the request ended %d bytes early: %w", left, unexpected(err))
		}
	}
	return nil
}

// readAnswer reads the answer. whole says that all of the request was sent; otherwise the connection is of no more use.
func (x *exchange) readAnswer(whole bool) (*Reply, error) {
	c := x.conn
	if _, err := c.br.Peek(1); err != nil {
		x.detach(false)
		return nil, unexpected(err)
	}
	x.answered = true
	typ, payload, err := ReadFrame(c.br, nil)
	if err == nil && typ == frameGoodbye {
		x.answered, x.sent = false, false
		x.detach(false)
		return nil, errGoodbye
	}
	if err == nil && typ != frameResponse {
		err = fmt.Errorf("%w: type %d in place of a response", ErrFrame, typ)
	}
	var h responseHeader
	var result []byte
	if err == nil {
		h, result, err = parseResponse(payload)
	}
	if err != nil {
		x.detach(false)
		return nil, err
	}
	reusable := whole && !h.closing
	if h.failed {
		x.detach(reusable)
		var w Failure
		if err := Decode(result, &w); err != nil {
			return nil, err
		}
		return nil, w.KV()
	}
	reply := &Reply{Result: result, BodySize: h.bodySize}
	if x.call.Stream {
		reply.Stream = &replyStream{x: x, left: h.bodySize, reusable: reusable}
		return reply, nil
	}
	if h.bodySize > x.call.MaxReply {
		x.detach(false)
		return nil, kv.Errorf(kv.CodeInternal, "node %s answered request %d with %d bytes; the limit is %d",
			x.node, x.call.Method, h.bodySize, x.call.MaxReply)
	}
	if reply.Body, err = readGrowing(c.br, nil, int(h.bodySize)); err != nil {
		x.detach(false)
		return nil, err
	}
	x.detach(reusable)
	x.end()
	return reply, nil
}

// replyStream is the body of an answer that is read as it comes.
type replyStream struct {
	x        *exchange
	left     int64
	reusable bool // the connection, once all is read
	err      error
	closed   bool
}

func (s *replyStream) Read(p []byte) (int, error) {
	switch {
	case s.closed:
		return 0, errors.New("read of a closed answer")
	case s.err != nil:
		return 0, s.err
	case s.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	n, err := s.x.conn.br.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if err != nil && s.left > 0 {
		s.err = s.x.fail(unexpected(err))
		return n, s.err
	}
	return n, nil
}

// Close gives the connection back when everything was read, and cuts it otherwise.
func (s *replyStream) Close() error {
	if !s.closed {
		s.closed = true
		s.x.detach(s.left == 0 && s.err == nil && s.reusable)
		s.x.end()
	}
	return nil
}
