package hitpath

import (
	"bytes"
	"crypto/tls"
	"errors"
	"time"

	"kvmesh/node/api"
)

const (
	// preface begins a connection on which the client speaks HTTP/2 without asking (RFC 9113, 3.4); what follows of it is for
	// net/http to look at.
	preface = "PRI * HTTP/2.0\r\n"
	// protocolHTTP2 is the name of HTTP/2 in ALPN.
	protocolHTTP2 = "h2"
)

// secure puts TLS on the connection and makes the handshake, for which the client has the time of phaseNew; it has the same
// again for its first head. When it reports false, the connection has ended; h2 says that HTTP/2 was negotiated.
func (c *conn) secure() (h2, ok bool) {
	if mutHandshake {
		c.standing.set(phaseBusy, 0)
	}
	secured, tc := c.taken.Secure(c.s.opts.TLS)
	err := tc.Handshake()
	c.taken, c.raw = secured, secured.Raw()
	if err != nil {
		c.s.metrics.refused.Inc()
		c.s.log.Debug("a TLS handshake failed", "peer", c.raw.RemoteAddr(), "err", err)
		if clear := (tls.RecordHeaderError{}); errors.As(err, &clear) && clear.Conn != nil && looksLikeHTTP(clear.RecordHeader[:]) {
			_, _ = clear.Conn.Write(api.RefuseClear()) // the connection ends either way
		}
		return false, false
	}
	c.standing.handshaken(c.s.tick.Load())
	return tc.ConnectionState().NegotiatedProtocol == protocolHTTP2, true
}

// http2 is the server of HTTP/2; there is one where HTTP/2 can be negotiated, or is looked for.
func (s *Server) http2() *next { return s.nexts[len(s.nexts)-1] }

// looksLikeHTTP tells from the first bytes whether a client speaks HTTP where TLS is expected.
func looksLikeHTTP(b []byte) bool {
	for _, method := range []string{"GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH", "PRI *"} {
		if string(b) == method {
			return true
		}
	}
	return false
}

// speaksHTTP2 reports whether the first bytes of a connection begin HTTP/2. After a request has been answered, or behind
// TLS, where it would have been negotiated, nobody may change to it.
func (c *conn) speaksHTTP2() bool {
	return c.s.opts.HTTP2 != nil && (!c.answered || mutLatePreface) && !c.isTLS && bytes.HasPrefix(c.in[c.start:c.end], []byte(preface))
}

// wake has a connection end that waits for its client. Behind TLS its own goroutine says goodbye: that is a write, and may
// block. Any goroutine may call it.
func (c *conn) wake() {
	if !c.isTLS {
		c.close()
		return
	}
	_ = c.base.Raw().SetDeadline(time.Unix(1, 0)) // it fails only where the connection is closed
}

// cut ends the connection at once, without a goodbye, which nobody would take after a write that failed. Any goroutine may
// call it.
func (c *conn) cut() {
	c.standing.gone()
	_ = c.base.Close() // there is nobody to tell
}
