package peer

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

const (
	// DefaultMaxInFlight bounds the requests that a node serves for others at one time.
	DefaultMaxInFlight = 1024
	// DefaultMaxBody is the largest request body taken: the largest value, sealed, with room for its segments' tags.
	DefaultMaxBody = kv.MaxValueBytes + 1<<20

	// maxHandlerTime bounds a request whose caller gave no deadline, or a longer one.
	maxHandlerTime = 5 * time.Minute
	// serverIdle is how long a connection may wait for its next request. It is longer than the client keeps one, so that
	// the side that sends closes first and no request meets a connection that is just being closed.
	serverIdle = 2*DefaultIdleTimeout + 10*time.Second
	// progressTimeout is how long a peer may take for the next piece of a request, or to take a piece of an answer.
	progressTimeout = 30 * time.Second
	// goodbyeFor is how long a connection on which nothing is under way is kept after a goodbye: a request that crosses with
	// it must not meet a closed socket, which would answer it with a reset.
	goodbyeFor = 300 * time.Millisecond
	// drainBody is how much of a body that the handler did not want is read, to keep the connection.
	drainBody = 256 << 10
	// smallBody is the size up to which a body is sent in one write with its frame.
	smallBody = 16 << 10
	// copyChunk is the piece of a streamed body that must make progress.
	copyChunk = 64 << 10
	// keepBuffer is the largest buffer that an idle connection keeps.
	keepBuffer = 64 << 10
)

// Request is one request as its handler sees it.
type Request struct {
	From   certs.Identity
	Method Method
	// Args are the encoded arguments, for Decode. They are overwritten once the handler has returned.
	Args []byte
	// Body gives exactly BodySize bytes, or fails with io.ErrUnexpectedEOF when the caller stopped before. It must not be
	// read after the handler has returned. What the handler does not read is thrown away.
	Body     io.Reader
	BodySize int64
	// Hops counts the nodes that the request has passed through.
	Hops uint8
}

// Response is the answer to a request.
type Response struct {
	// Result is encoded with Encode; nil is an empty result.
	Result any
	// Body is sent after the result. A larger one can be given as BodyReader with its exact BodySize instead; it is closed
	// afterwards if it can be closed, whether it was sent or not.
	Body       []byte
	BodyReader io.Reader
	BodySize   int64
}

// HandlerFunc serves one request. ctx ends at the caller's deadline, when the caller hangs up, and when the server must
// stop. Errors that are not *kv.Error reach the caller as CodeInternal, or CodeDeadlineExceeded when they wrap that.
type HandlerFunc func(ctx context.Context, req *Request) (*Response, error)

// MuxOptions make a Mux.
type MuxOptions struct {
	Logger      *slog.Logger          // nil: discard
	Metrics     prometheus.Registerer // nil: none
	MaxInFlight int                   // 0: DefaultMaxInFlight. Above it callers get CodeOverloaded at once
	MaxBody     int64                 // bytes of a request body; 0: DefaultMaxBody
}

// Mux serves kvmesh-rpc/1: one request at a time on each connection, by method.
type Mux struct {
	opts    MuxOptions
	methods map[Method]method
	metrics *muxMetrics
	slots   chan struct{} // one token a request
}

type method struct {
	name string
	fn   HandlerFunc
}

// NewMux returns a Mux without methods.
func NewMux(o MuxOptions) *Mux {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.MaxBody <= 0 {
		o.MaxBody = DefaultMaxBody
	}
	return &Mux{
		opts:    o,
		methods: make(map[Method]method),
		metrics: newMuxMetrics(o.Metrics),
		slots:   make(chan struct{}, o.MaxInFlight),
	}
}

// Handle registers a method, before the Mux is served. name is for logs and metrics. A method that is not registered is
// answered with CodeUnsupportedByPeer.
func (m *Mux) Handle(number Method, name string, fn HandlerFunc) {
	m.methods[number] = method{name, fn}
}

// Serve serves one connection until the caller hangs up, the server drains or ctx ends: the handler of ALPNRPC for
// Server.Handle.
func (m *Mux) Serve(ctx context.Context, c *Conn) {
	s := &session{mux: m, c: c, br: bufio.NewReaderSize(c, smallBody)}
	for s.awaitRequest() {
		if err := s.serveRequest(ctx); err != nil {
			m.opts.Logger.Debug("a peer connection ends", "peer", c.peer, "err", err)
			return
		}
	}
	if c.drain.Err() != nil && ctx.Err() == nil {
		s.goodbye()
	}
}
