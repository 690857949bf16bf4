package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

const (
	// DefaultIdleTimeout is how long a connection is kept for the next request.
	DefaultIdleTimeout = 60 * time.Second
	// DefaultMaxIdle bounds the connections kept to one node. It is wide, because a burst that finds fewer pays with TLS
	// handshakes for all others, again and again; those that a quiet minute does not need are closed by their age.
	DefaultMaxIdle = 256
	// DefaultMaxPerNode bounds the requests under way to one node; further ones wait for their turn, or their deadline.
	DefaultMaxPerNode = 512
	// DefaultCallTimeout bounds a call whose context has no deadline.
	DefaultCallTimeout = time.Minute
	// DefaultMaxReply is the largest reply body that is taken into memory: the largest value that a cache holds, sealed.
	DefaultMaxReply = kv.MaxCachedValueBytes + 64<<10
)

// Call is one request.
type Call struct {
	Method Method
	Args   any // encoded with Encode; nil = none
	// Body is sent after the arguments. A larger one can be given as BodyReader with its exact BodySize instead. A request
	// with a BodyReader is sent again only when that is an io.Seeker, or when none of it had been read.
	Body       []byte
	BodyReader io.Reader
	BodySize   int64
	Hops       uint8
	// Idempotent says that it does no harm when the request is carried out twice.
	Idempotent bool
	// MaxReply bounds Reply.Body. 0: DefaultMaxReply. It does not bound a stream.
	MaxReply int64
	// Stream asks for the reply's body as Reply.Stream instead of Reply.Body.
	Stream bool
}

// Reply is the answer to a Call.
type Reply struct {
	// Result is encoded, for Decode.
	Result []byte
	// Body is the whole body, unless the call asked for a stream.
	Body []byte
	// Stream gives exactly BodySize bytes or fails. The call's context bounds reading it, and the caller must close it.
	Stream   io.ReadCloser
	BodySize int64
}

// CallError is a request that got no answer. It also counts as a *kv.Error (errors.As, errors.Is, kv.CodeOf): as the one
// that Err wraps (an unknown node, a body that could not be read), else CodeOutcomeUnknown when the request may have been
// received and must not be sent again, CodeDeadlineExceeded when the time was up, and CodeUnavailable otherwise.
type CallError struct {
	Node   string
	Method Method
	// MaybeSent says that the node may have received the request, and may still carry it out.
	MaybeSent  bool
	Idempotent bool // as in the Call
	Err        error
}

func (e *CallError) Error() string {
	sent := "not sent"
	if e.MaybeSent {
		sent = "may have been received"
	}
	return fmt.Sprintf("request %d to node %s (%s): %v", e.Method, e.Node, sent, e.Err)
}

func (e *CallError) Unwrap() error { return e.Err }

// As makes a CallError count as a *kv.Error.
func (e *CallError) As(target any) bool {
	t, ok := target.(**kv.Error)
	if ok {
		*t = e.kv()
	}
	return ok
}

// Is compares with a *kv.Error by code.
func (e *CallError) Is(target error) bool {
	t, ok := target.(*kv.Error)
	return ok && t.Code == e.kv().Code
}

func (e *CallError) kv() *kv.Error {
	var inner *kv.Error
	switch {
	case errors.As(e.Err, &inner):
		return inner
	case e.MaybeSent && !e.Idempotent:
		return kv.Errorf(kv.CodeOutcomeUnknown, "%s", e.Error())
	case errors.Is(e.Err, context.DeadlineExceeded):
		return kv.Errorf(kv.CodeDeadlineExceeded, "%s", e.Error())
	}
	return kv.Errorf(kv.CodeUnavailable, "%s", e.Error())
}

// ClientOptions make a Client.
type ClientOptions struct {
	Dialer      *Dialer
	Logger      *slog.Logger          // nil: discard
	Metrics     prometheus.Registerer // nil: none
	MaxIdle     int                   // connections kept to one node; 0: DefaultMaxIdle
	IdleTimeout time.Duration         // 0: DefaultIdleTimeout
	MaxPerNode  int                   // 0: DefaultMaxPerNode
}

// Client sends requests to other nodes, over connections that it keeps. It is safe for concurrent use.
type Client struct {
	dialer  *Dialer
	log     *slog.Logger
	metrics *clientMetrics
	pool    *pool
	base    context.Context // done when the client is closed
	cancel  context.CancelFunc

	maxPerNode int
	mu         sync.Mutex               // guards nodes
	nodes      map[string]*nodeRequests // only nodes with requests under way or waiting
}

// nodeRequests bounds the requests to one node.
type nodeRequests struct {
	slots chan struct{} // one token a request
	users int           // requests under way or waiting; guarded by Client.mu
}

// NewClient returns a client that must be closed.
func NewClient(o ClientOptions) *Client {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxIdle <= 0 {
		o.MaxIdle = DefaultMaxIdle
	}
	if o.IdleTimeout <= 0 {
		o.IdleTimeout = DefaultIdleTimeout
	}
	if o.MaxPerNode <= 0 {
		o.MaxPerNode = DefaultMaxPerNode
	}
	m := newClientMetrics(o.Metrics)
	cl := &Client{
		dialer:     o.Dialer,
		log:        o.Logger,
		metrics:    m,
		pool:       newPool(o.MaxIdle, o.IdleTimeout, m.idle),
		maxPerNode: o.MaxPerNode,
		nodes:      make(map[string]*nodeRequests),
	}
	cl.base, cl.cancel = context.WithCancel(context.Background())
	return cl
}

// Close closes the idle connections and cuts the ones in use; calls under way fail.
func (cl *Client) Close() {
	cl.cancel()
	cl.pool.close()
}

// Call sends a request to a node and waits for the answer. An error that the node answered with is a *kv.Error. A request
// without an answer is a *CallError; it was sent again, once and on a fresh connection, if it had gone to a connection
// that was idle before and it is idempotent or certainly not received. When ctx ends the connection is cut, by which the
// node notices.
func (cl *Client) Call(ctx context.Context, nodeID string, c Call) (*Reply, error) {
	reply, err := cl.call(ctx, nodeID, c)
	result := "ok"
	var noAnswer *CallError
	switch {
	case errors.As(err, &noAnswer):
		result = "transport"
	case err != nil:
		result = "error"
	}
	cl.metrics.calls.WithLabelValues(result).Inc()
	return reply, err
}

func (cl *Client) call(ctx context.Context, nodeID string, c Call) (*Reply, error) {
	args, err := Encode(c.Args)
	if err != nil {
		return nil, kv.Errorf(kv.CodeInternal, "request %d: %v", c.Method, err)
	}
	if len(args) > MaxPayload-requestHead {
		return nil, kv.Errorf(kv.CodeInternal, "request %d: arguments of %d bytes; the limit is %d",
			c.Method, len(args), MaxPayload-requestHead)
	}
	if c.BodyReader == nil {
		c.BodySize = int64(len(c.Body))
	} else if c.BodySize < 0 {
		return nil, kv.Errorf(kv.CodeInternal, "request %d: the body has no size", c.Method)
	}
	if c.MaxReply <= 0 {
		c.MaxReply = DefaultMaxReply
	}
	x := &exchange{cl: cl, node: nodeID, call: c, args: args}
	if _, ok := ctx.Deadline(); ok {
		x.ctx, x.cancel = context.WithCancel(ctx)
	} else {
		x.ctx, x.cancel = context.WithTimeout(ctx, DefaultCallTimeout)
	}
	if cl.base.Err() != nil {
		x.cancel()
	}
	stop := context.AfterFunc(cl.base, x.cancel)
	x.onEnd(func() { stop(); x.cancel() })

	release, err := cl.acquire(x.ctx, nodeID)
	if err != nil {
		x.end()
		return nil, x.fail(err)
	}
	x.onEnd(release)
	return x.run()
}

// acquire waits for one of the node's slots.
func (cl *Client) acquire(ctx context.Context, nodeID string) (release func(), err error) {
	cl.mu.Lock()
	n := cl.nodes[nodeID]
	if n == nil {
		n = &nodeRequests{slots: make(chan struct{}, cl.maxPerNode)}
		cl.nodes[nodeID] = n
	}
	n.users++
	cl.mu.Unlock()
	leave := func() {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(cl.nodes, nodeID)
		}
	}
	select {
	case n.slots <- struct{}{}:
		return func() { <-n.slots; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("waiting for one of %d requests under way: %w", cl.maxPerNode, context.Cause(ctx))
	}
}
