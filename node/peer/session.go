package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"kvmesh/raftstore/kv"
)

// session is one connection of a Mux.
type session struct {
	mux  *Mux
	c    *Conn
	br   *bufio.Reader
	rbuf []byte // of the request frame
	wbuf []byte // of the response frame
}

// awaitRequest waits for the first byte of a request and reports whether one came. It stops waiting when the server drains,
// but a request that has begun by then is still served: its caller could not know whether to send it again.
func (s *session) awaitRequest() bool {
	if s.c.drain.Err() != nil {
		return false
	}
	if err := s.c.SetReadDeadline(time.Now().Add(serverIdle)); err != nil {
		return false
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(s.c.drain, func() {
		defer close(woken)
		_ = s.c.SetReadDeadline(longAgo) // fails only when the connection is closed, which wakes the reader too
	})
	_, err := s.br.Peek(1)
	if !stop() {
		<-woken
	}
	return err == nil
}

// goodbye ends a connection on which no request has begun, and says so to a caller whose next one is already on its way.
func (s *session) goodbye() {
	b, err := AppendFrame(nil, frameGoodbye, nil)
	if err != nil || s.write(b) != nil {
		return
	}
	s.c.lingerClose(goodbyeFor)
}

// serveRequest reads a request, serves and answers it. An error means that the connection cannot be used any further.
func (s *session) serveRequest(ctx context.Context) error {
	if err := s.c.SetReadDeadline(time.Now().Add(progressTimeout)); err != nil {
		return err
	}
	typ, payload, err := ReadFrame(s.br, s.rbuf)
	if err != nil {
		return err
	}
	s.rbuf = payload[:0]
	if cap(s.rbuf) > keepBuffer {
		s.rbuf = nil
	}
	if typ != frameRequest {
		return fmt.Errorf("%w: type %d in place of a request", ErrFrame, typ)
	}
	h, args, err := parseRequest(payload)
	if err != nil {
		return err
	}
	timeout := min(h.timeout, maxHandlerTime)
	if timeout <= 0 {
		timeout = maxHandlerTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	ctx, hangUp := context.WithCancelCause(ctx)
	defer hangUp(nil)

	body := &requestBody{s: s, left: h.bodySize, gone: hangUp}
	body.deadline, _ = ctx.Deadline()
	if h.bodySize == 0 {
		body.watch()
	}
	req := &Request{From: s.c.peer, Method: h.method, Args: args, Body: body, BodySize: h.bodySize, Hops: h.hops}
	if err := s.answer(ctx, req, body); err != nil {
		return err
	}
	switch {
	case errors.Is(body.err, os.ErrDeadlineExceeded): // the caller still sends, and should get to read the answer
		s.c.lingerClose(refusalTimeout)
		return body.err
	case body.err != nil:
		return body.err
	case body.left > drainBody:
		s.c.lingerClose(progressTimeout)
		return fmt.Errorf("the handler left %d bytes of the body", body.left)
	case body.left > 0:
		if err := s.c.SetReadDeadline(time.Now().Add(progressTimeout)); err != nil {
			return err
		}
		_, err := io.CopyN(io.Discard, s.br, body.left)
		return err
	}
	return nil
}

// answer runs the handler and sends what it returned.
func (s *session) answer(ctx context.Context, req *Request, body *requestBody) error {
	m := s.mux
	meth, known := m.methods[req.Method]
	name := meth.name
	if !known {
		name = "unknown"
	}
	var resp *Response
	var err error
	select {
	case m.slots <- struct{}{}:
		m.metrics.inFlight.Inc()
		defer func() {
			m.metrics.inFlight.Dec()
			<-m.slots
		}()
		begin := time.Now()
		switch {
		case !known:
			err = kv.Errorf(kv.CodeUnsupportedByPeer, "this node does not know method %d; upgrade it", req.Method)
		case req.BodySize > m.opts.MaxBody:
			err = kv.Errorf(kv.CodeInvalidBody, "a request body of %d bytes; the limit is %d", req.BodySize, m.opts.MaxBody)
		default:
			resp, err = s.call(ctx, meth, req)
		}
		m.metrics.seconds.WithLabelValues(name).Observe(time.Since(begin).Seconds())
	default:
		e := kv.Errorf(kv.CodeOverloaded, "the node is serving %d requests of other nodes, its limit", m.opts.MaxInFlight)
		e.RetryAfter = time.Second
		err = e
	}
	if stopErr := body.stop(); stopErr != nil {
		body.err = stopErr
	}
	code := "ok"
	if err != nil {
		code = NewFailure(err).Code
	}
	m.metrics.requests.WithLabelValues(name, code).Inc()
	if errors.Is(context.Cause(ctx), errPeerGone) {
		closeBody(resp)
		return errPeerGone
	}
	// The caller must not keep a connection that is about to end: it would lose its next request to it.
	closing := body.err != nil || body.left > drainBody || s.c.drain.Err() != nil
	return s.respond(resp, err, closing)
}

// call runs the handler and turns a panic into CodeInternal.
func (s *session) call(ctx context.Context, meth method, req *Request) (resp *Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.mux.opts.Logger.Error("a handler paniced", "method", meth.name, "peer", req.From,
				"panic", p, "stack", string(debug.Stack()))
			resp, err = nil, kv.Errorf(kv.CodeInternal, "the node failed on method %s; its log has the details", meth.name)
		}
	}()
	return meth.fn(ctx, req)
}

// respond sends an answer, or an error.
func (s *session) respond(resp *Response, err error, closing bool) error {
	defer closeBody(resp)
	if resp == nil {
		resp = &Response{}
	}
	h, body := responseHeader{closing: closing, bodySize: int64(len(resp.Body))}, resp.Body
	if resp.BodyReader != nil {
		h.bodySize, body = resp.BodySize, nil
	}
	var result []byte
	if err == nil {
		result, err = Encode(resp.Result)
	}
	if err == nil && h.bodySize < 0 {
		err = kv.Errorf(kv.CodeInternal, "the answer has a body of unknown size")
	}
	if err == nil && len(result) > MaxPayload-responseHead {
		err = kv.Errorf(kv.CodeInternal, "the result has %d bytes, more than a frame holds", len(result))
	}
	if err != nil {
		h, body = responseHeader{closing: closing, failed: true}, nil
		if result, err = Encode(NewFailure(err)); err != nil {
			return err
		}
	}
	if s.wbuf, err = appendResponse(s.wbuf[:0], h, result); err != nil {
		return err
	}
	if len(body) <= smallBody {
		s.wbuf, body = append(s.wbuf, body...), nil
	}
	err = s.write(s.wbuf)
	if cap(s.wbuf) > keepBuffer {
		s.wbuf = nil
	}
	for len(body) > 0 && err == nil {
		n := min(len(body), copyChunk)
		err = s.write(body[:n])
		body = body[n:]
	}
	if err == nil && !h.failed && resp.BodyReader != nil {
		err = s.stream(resp.BodyReader, h.bodySize)
	}
	return err
}

// stream sends exactly size bytes of r. When r has fewer or fails, the connection is cut, which is how the caller learns.
func (s *session) stream(r io.Reader, size int64) error {
	buf := make([]byte, min(size, copyChunk))
	for size > 0 {
		n, err := io.ReadFull(r, buf[:min(size, int64(len(buf)))])
		if err != nil {
			s.c.Abort()
			return fmt.Errorf("the body of an answer ended %d bytes early: %w", size-int64(n), err)
		}
		if err := s.write(buf[:n]); err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

func (s *session) write(b []byte) error {
	if err := s.c.SetWriteDeadline(time.Now().Add(progressTimeout)); err != nil {
		return err
	}
	_, err := s.c.Write(b)
	return err
}

func closeBody(resp *Response) {
	if resp == nil {
		return
	}
	if c, ok := resp.BodyReader.(io.Closer); ok {
		_ = c.Close() // it was only read
	}
}
