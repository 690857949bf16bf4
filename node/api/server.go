package api

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// The limits of a server, where ServerOptions does not say.
const (
	// readHeaderTimeout ends a connection whose request header takes longer: a slow header costs a goroutine.
	readHeaderTimeout = 10 * time.Second
	// idleTimeout ends a kept-alive connection without a request, so that idle clients do not use up MaxConns.
	idleTimeout = 90 * time.Second
	// maxHeaderBytes fits the longest names percent-encoded (2 × 512 × 3), 1 KiB of metadata and a generous cookie jar.
	maxHeaderBytes = 64 << 10
	// progressTimeout is how long a body may stand still, in either direction.
	progressTimeout = 30 * time.Second
	// drainTimeout is how long net/http may read what a handler left of a body before it sends the answer. Clients that
	// send everything before they listen need it to read at all; it is well below progressTimeout, because the deadline
	// of the answer runs meanwhile.
	drainTimeout = 5 * time.Second
	// progressBytes is how much of an answer a client has to take within progressTimeout; a larger write is cut up.
	progressBytes = 64 << 10
	// maxStreams is how many requests one HTTP/2 connection has under way, each of which costs a goroutine. RFC 9113 asks
	// for 100 or more.
	maxStreams = 128
	// streamWindow is what a client may send of the bodies on one HTTP/2 connection before somebody has read it: memory of
	// this node's. It carries 20 MB/s over a round trip of 50 ms.
	streamWindow = 1 << 20
)

// ServerOptions are the limits of one HTTP listener. Zero values are the defaults.
type ServerOptions struct {
	Logger *slog.Logger // nil = discard
	// Progress is how long a request's or answer's body may stand still; 0 = 30 s.
	Progress time.Duration
	// HTTP2 makes it a server of HTTP/2 as well: on connections that are a *tls.Conn and negotiated it, and by prior
	// knowledge on connections in clear.
	HTTP2 bool
}

// NewServer returns an http.Server with the limits that every HTTP listener of a node has: time and size of the request
// header, idle time, and a deadline for bodies that moves on as bytes do, so that a slow transfer passes and a dead one
// does not. The caller serves it a listener from LimitListener, which caps the connections and turns net/http's own
// plain-text refusals (a bad escape in the path, say, of which no handler learns) into errors like all others.
func NewServer(h http.Handler, o ServerOptions) *http.Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Progress == 0 {
		o.Progress = progressTimeout
	}
	s := &http.Server{
		Handler:           &progressHandler{next: h, limit: o.Progress},
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if lc, ok := c.(*limitedConn); ok {
				return context.WithValue(ctx, connKey{}, lc)
			}
			return ctx
		},
		ConnState: func(c net.Conn, state http.ConnState) {
			if lc, ok := c.(*limitedConn); ok && state == http.StateIdle {
				lc.handling.Store(false)
			}
		},
	}
	s.Protocols = new(http.Protocols)
	s.Protocols.SetHTTP1(true)
	if o.HTTP2 {
		s.Protocols.SetHTTP2(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		s.HTTP2 = &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: streamWindow, MaxReceiveBufferPerStream: streamWindow,
			WriteByteTimeout: o.Progress,
		}
	}
	return s
}

// connKey finds the connection of a request in its context.
type connKey struct{}

// progressHandler gives every request moving deadlines.
type progressHandler struct {
	next  http.Handler
	limit time.Duration
}

func (p *progressHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if lc, ok := r.Context().Value(connKey{}).(*limitedConn); ok {
		lc.phrase.Store(nil) // of an answer before this one that was cut before it began
		lc.handling.Store(true)
	}
	rc := http.NewResponseController(w)
	pw := &progressWriter{ResponseWriter: w, rc: rc, limit: p.limit}
	if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
		body := &progressBody{body: r.Body, rc: rc, limit: p.limit}
		pw.unread = body
		// A copy, because net/http looks at the type of the original's body when it decides whether a client that
		// expects 100-continue still waits to be asked.
		r = r.WithContext(r.Context())
		r.Body = body
	}
	p.next.ServeHTTP(pw, r)
	pw.drain() // for a handler that wrote nothing
}

// progressBody moves the read deadline with every read.
type progressBody struct {
	body  io.ReadCloser
	rc    *http.ResponseController
	limit time.Duration
	ended atomic.Bool // read to its end
}

func (b *progressBody) Read(p []byte) (int, error) {
	if b.ended.Load() {
		return b.body.Read(p)
	}
	b.set(time.Now().Add(b.limit))
	n, err := b.body.Read(p)
	if err == io.EOF {
		// From here on net/http watches for the client to leave, and a deadline that passes looks just like that. Over
		// HTTP/1 it has removed this one itself; over HTTP/2 nobody has.
		b.ended.Store(true)
		b.set(time.Time{})
	}
	return n, err
}

func (b *progressBody) Close() error { return b.body.Close() }

// set sets the read deadline. It fails only where there is no connection (a recorder in a test) or it is closed, which
// the next read reports.
func (b *progressBody) set(t time.Time) { _ = b.rc.SetReadDeadline(t) }

// progressWriter moves the write deadline with every piece of the answer. net/http removes it after each request.
type progressWriter struct {
	http.ResponseWriter
	rc     *http.ResponseController
	limit  time.Duration
	unread *progressBody // nil when there is no body, or once net/http may drain it
}

func (w *progressWriter) WriteHeader(status int) {
	w.drain()
	w.extend()
	w.ResponseWriter.WriteHeader(status)
}

func (w *progressWriter) Write(p []byte) (n int, err error) {
	w.drain()
	for {
		w.extend()
		piece := p[n:min(len(p), n+progressBytes)]
		m, err := w.ResponseWriter.Write(piece)
		n += m
		if err != nil || n == len(p) {
			return n, err
		}
		if m < len(piece) {
			return n, io.ErrShortWrite
		}
	}
}

// drain sets the deadline for what is left of the body. net/http reads it when the answer begins, with no deadline of
// its own.
func (w *progressWriter) drain() {
	if w.unread != nil && !w.unread.ended.Load() {
		w.unread.set(time.Now().Add(drainTimeout))
	}
	w.unread = nil
}

// FlushError makes streaming handlers work through http.ResponseController.
func (w *progressWriter) FlushError() error {
	w.extend()
	return w.rc.Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *progressWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// extend moves the write deadline; see progressBody.set for its error.
func (w *progressWriter) extend() { _ = w.rc.SetWriteDeadline(time.Now().Add(w.limit)) }
