// Package client speaks the native HTTP API of a node. It is what the commands of kvmesh are made of, and is small
// enough for tests and scripts: bounded parallelism, streamed bodies, and retries that never turn one write into two
// unless the caller allows it.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/raftstore/kv"
)

// Defaults of Options.
const (
	DefaultURL      = "http://127.0.0.1:8580"
	DefaultParallel = 16
	// DefaultRetryFor is several times what electing a new leader takes.
	DefaultRetryFor = 15 * time.Second
)

const (
	// backoffMin and backoffMax bound the pause before a retry when the node asks for nothing.
	backoffMin = 100 * time.Millisecond
	backoffMax = 2 * time.Second

	dialTimeout = 5 * time.Second
	// headTimeout bounds the wait for the first byte of an answer once the request is out; nodes give up after 30 s.
	headTimeout = 60 * time.Second
	// expectAbove is the body size from which the node is asked first whether it wants the body: a refusal (a wrong
	// token, a value too large, no leader) then costs one round trip and not the upload.
	expectAbove = 64 << 10
	// expectTimeout is how long that question may go unanswered.
	expectTimeout = 2 * time.Second
)

// Options of a Client. Every field may be left out.
type Options struct {
	// URL of a node: http or https, host and port. "host:port" means http.
	URL string
	// Token is sent as the bearer token; empty: none.
	Token string
	// Parallel is the most requests under way at a time, bodies of answers included; 0 = DefaultParallel.
	Parallel int
	// RetryFor is how long one call goes on trying while the node says that it cannot answer now (503, 429); 0 =
	// DefaultRetryFor, negative = never.
	RetryFor time.Duration
	// RetryUnknown repeats unconditional writes too whose outcome is unknown. The value written may then replace what
	// somebody else wrote in between.
	RetryUnknown bool
	// RootCAs are the certificates that an https URL is believed by; nil = the system's.
	RootCAs *x509.CertPool
	// Transport replaces the HTTP transport, for tests.
	Transport http.RoundTripper
}

// Client talks to one node. It is safe for concurrent use. Close ends its idle connections.
type Client struct {
	base  string // without a slash at the end
	opts  Options
	http  *http.Client
	slots chan struct{} // one element for each request under way
	// foreign says that it is another service that answers, which promises nothing about what it did.
	foreign bool
}

// New returns a client. It does not connect yet.
func New(o Options) (*Client, error) {
	if o.URL == "" {
		o.URL = DefaultURL
	}
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	if o.RetryFor == 0 {
		o.RetryFor = DefaultRetryFor
	}
	base, err := parseBase(o.URL)
	if err != nil {
		return nil, err
	}
	return newClient(base, o), nil
}

// newClient makes a client of what lies below base.
func newClient(base string, o Options) *Client {
	if o.Transport == nil {
		o.Transport = newTransport(o.Parallel, o.RootCAs)
	}
	return &Client{
		base: base, opts: o, slots: make(chan struct{}, o.Parallel),
		http: &http.Client{
			Transport: o.Transport,
			// A node never redirects, and the token must not follow anybody who does.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

func newTransport(parallel int, roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		MaxIdleConns:          parallel,
		MaxIdleConnsPerHost:   parallel,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: headTimeout,
		ExpectContinueTimeout: expectTimeout,
		DisableCompression:    true, // values come back byte for byte
	}
}

func parseBase(raw string) (string, error) {
	full := raw
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	if err != nil {
		return "", fmt.Errorf("%q is not a URL; write for example %s", raw, DefaultURL)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not the URL of a node: scheme http or https, a host and a port; write for example %s",
			u.Redacted(), DefaultURL)
	}
	return u.Scheme + "://" + u.Host, nil
}

// URL of the node.
func (c *Client) URL() string { return c.base }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Body is the body of a write. Open may be called more than once, for retries, unless Once is set.
type Body struct {
	Open func() (io.ReadCloser, error)
	// Size in bytes, -1 when it is not known. A body that gives more or fewer fails.
	Size int64
	// Once says that the body can be read only once, like standard input: there is no retry after it was opened.
	Once bool
}

// BytesBody is a body in memory, which must not change any more.
func BytesBody(b []byte) Body {
	return Body{Size: int64(len(b)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// call is one request, however often it is sent.
type call struct {
	method string
	path   string // escaped
	query  url.Values
	header http.Header
	body   *Body
	// repeatable says that sending the request twice has the effect of sending it once.
	repeatable bool
}

// do sends a call until it is answered for good, and returns an answer of status 2xx. The caller closes its body, which
// also gives the slot back.
func (c *Client) do(ctx context.Context, cl call) (*http.Response, error) {
	deadline := time.Now().Add(c.opts.RetryFor)
	for attempt := 1; ; attempt++ {
		resp, opened, err := c.once(ctx, cl)
		if err == nil {
			return resp, nil
		}
		asked := noteAttempt(err, attempt)
		if ctx.Err() != nil || !c.retryable(cl, opened, attempt, err) {
			return nil, err
		}
		pause := max(backoff(attempt), asked)
		if time.Now().Add(pause).After(deadline) {
			return nil, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		}
	}
}

// noteAttempt writes into an error how often the request was sent, and returns the pause that the answer asks for.
func noteAttempt(err error, attempt int) time.Duration {
	var e *Error
	var f *ForeignError
	switch {
	case errors.As(err, &e):
		e.Attempts = attempt
		return e.RetryAfter
	case errors.As(err, &f):
		f.Attempts = attempt
		return f.RetryAfter
	}
	return 0
}

// retryable decides whether a call may be sent again. A 503 or 429 with any code but outcome_unknown promises that
// nothing was done. What gave no such promise is repeated only if the caller asked for it.
func (c *Client) retryable(cl call, opened bool, attempt int, err error) bool {
	if !cl.repeatable || (opened && cl.body.Once) {
		return false
	}
	if c.foreign {
		return passing(err, attempt)
	}
	if CodeOf(err) == kv.CodeOutcomeUnknown {
		return c.opts.RetryUnknown
	}
	var e *Error
	return errors.As(err, &e) && (e.Status == http.StatusServiceUnavailable || e.Status == http.StatusTooManyRequests)
}

// backoff doubles with every attempt, with a random half, so that clients do not come back all at once.
func backoff(attempt int) time.Duration {
	d := min(backoffMin<<min(attempt-1, 10), backoffMax)
	return d/2 + rand.N(d/2)
}

// once sends the call one time. opened tells whether the body was touched.
func (c *Client) once(ctx context.Context, cl call) (resp *http.Response, opened bool, err error) {
	if ctx.Err() != nil { // select takes either when both are ready
		return nil, false, ctx.Err()
	}
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	release := sync.OnceFunc(func() { <-c.slots })
	defer func() {
		if err != nil {
			release()
		}
	}()
	var connected, touched atomic.Bool // set by the transport's goroutines
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
	})
	req, err := c.request(traced, cl, &touched)
	if err != nil {
		return nil, touched.Load(), err
	}
	resp, err = c.http.Do(req)
	if err != nil {
		return nil, touched.Load(), transportError(c.base, cl.method, connected.Load(), err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, touched.Load(), c.readError(resp)
	}
	resp.Body = &releasingBody{ReadCloser: resp.Body, release: release}
	return resp, touched.Load(), nil
}

func (c *Client) request(ctx context.Context, cl call, touched *atomic.Bool) (*http.Request, error) {
	target := c.base + cl.path
	if len(cl.query) > 0 {
		target += "?" + cl.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, cl.method, target, nil)
	if err != nil {
		return nil, err
	}
	for name, values := range cl.header {
		req.Header[name] = values
	}
	req.Header.Set("User-Agent", "kvmesh")
	if c.opts.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	if cl.body == nil {
		return req, nil
	}
	if req.ContentLength = cl.body.Size; req.ContentLength == 0 {
		req.Body = http.NoBody
		return req, nil
	}
	if cl.body.Size < 0 || cl.body.Size > expectAbove {
		req.Header.Set("Expect", "100-continue")
	}
	open := func() (io.ReadCloser, error) { return &lazyBody{body: cl.body, touched: touched}, nil }
	req.Body, _ = open() // cannot fail: the body is opened by the first read
	if !cl.body.Once {
		req.GetBody = open
	}
	return req, nil
}

// releasingBody gives the slot back when the answer has been read.
type releasingBody struct {
	io.ReadCloser
	release func()
}

func (b *releasingBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}

// bodyError marks errors of our own input among those of the transport.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// lazyBody opens a body at its first read, so that one that is never asked for (100-continue) stays untouched, and
// holds it to its size: a file that changes while it is read must not be stored as something it never was. One
// goroutine reads; another may close at any time.
type lazyBody struct {
	body    *Body
	touched *atomic.Bool
	n       int64 // bytes read so far

	mu     sync.Mutex // guards all below, and is not held while reading
	r      io.ReadCloser
	closed bool
}

func (b *lazyBody) Read(p []byte) (int, error) {
	r, err := b.reader()
	if err != nil {
		return 0, err
	}
	n, err := r.Read(p)
	b.n += int64(n)
	size := b.body.Size
	switch {
	case size >= 0 && b.n > size:
		return n, &bodyError{fmt.Errorf("it grew beyond %d bytes while it was read", size)}
	case errors.Is(err, io.EOF) && b.n < size:
		return n, &bodyError{fmt.Errorf("it ended after %d of %d bytes", b.n, size)}
	case err != nil && !errors.Is(err, io.EOF):
		return n, &bodyError{err}
	}
	return n, err
}

func (b *lazyBody) reader() (io.ReadCloser, error) {
	b.mu.Lock()
	r, closed := b.r, b.closed
	b.mu.Unlock()
	if closed {
		return nil, http.ErrBodyReadAfterClose
	}
	if r != nil {
		return r, nil
	}
	b.touched.Store(true)
	r, err := b.body.Open()
	if err != nil {
		return nil, &bodyError{err}
	}
	b.mu.Lock()
	b.r, closed = r, b.closed
	b.mu.Unlock()
	if closed { // while it was being opened: Close has not seen it
		_ = r.Close()
		return nil, http.ErrBodyReadAfterClose
	}
	return r, nil
}

func (b *lazyBody) Close() error {
	b.mu.Lock()
	r, again := b.r, b.closed
	b.closed = true
	b.mu.Unlock()
	if r == nil || again {
		return nil
	}
	return r.Close()
}
