package cfrest

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// putValue answers PUT of a key: the body is the value, whatever its content type says, unless it is a form. Everything
// that can be refused before the body is read is.
func (s *surface) putValue(c *call) error {
	if p := cfkv.CheckKey(c.key); p != nil {
		return p
	}
	expiry, p := cfkv.Expiry(c.q.Get("expiration_ttl"), c.q.Get("expiration"), s.svc.MeshTime())
	if p != nil {
		return p
	}
	if err := api.PlainEncoding(c.r); err != nil {
		return err
	}
	boundary, form, err := formBoundary(c.r)
	if err != nil {
		return err
	}
	if !form && c.r.ContentLength > kv.MaxValueBytes {
		return cfkv.ValueTooLarge(c.r.ContentLength)
	}
	ctx, touch, stop := api.IdleContext(c.r.Context(), s.timeout)
	defer stop()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	put := func() error { return s.putRaw(ctx, c, ns, expiry, touch) }
	if form {
		put = func() error { return s.putForm(ctx, c, ns, expiry, boundary, touch) }
	}
	if err := put(); err != nil {
		return err
	}
	return c.ok(nil, nil)
}

// formBoundary tells whether the body is a form.
func formBoundary(r *http.Request) (boundary string, form bool, err error) {
	text := r.Header.Get("Content-Type")
	kind, params, err := mime.ParseMediaType(text)
	if err != nil && strings.HasPrefix(strings.ToLower(strings.TrimSpace(text)), "multipart/form-data") {
		return "", true, badBody("the Content-Type of the form cannot be read: %v", err)
	}
	if kind != "multipart/form-data" {
		return "", false, nil
	}
	if boundary = params["boundary"]; boundary == "" {
		return "", true, badBody("the Content-Type of the form names no boundary")
	}
	return boundary, true, nil
}

// putRaw streams the body into the store.
func (s *surface) putRaw(ctx context.Context, c *call, ns kv.Namespace, expiry int64, touch func()) error {
	if !s.limit.Allow(ns.ID, c.key) {
		return throttled()
	}
	body := newBody(c.r, kv.MaxValueBytes, touch)
	_, err := s.svc.Put(ctx, api.PutRequest{
		Namespace: ns, Key: c.key, Expiry: expiry, Body: body, Size: c.r.ContentLength, Timing: c.Timing(),
	})
	return body.explain(err)
}

// body is the body of a request: it holds a limit while it streams, turns what goes wrong into errors that can be told, and
// remembers them, because on its way through the service an error may lose its form.
type body struct {
	r     io.Reader
	limit int64
	size  int64 // announced, -1 = not
	read  int64
	touch func()
	// tooLarge is what a client is told once more than limit has come.
	tooLarge func(read int64) error

	failure atomic.Pointer[error] // nil until something went wrong
	whole   atomic.Bool           // every byte has been given out
}

// newBody gives a body that is a value.
func newBody(r *http.Request, limit int64, touch func()) *body {
	b := &body{
		r: r.Body, limit: limit, size: r.ContentLength, touch: touch,
		tooLarge: func(n int64) error { return cfkv.ValueTooLarge(n) },
	}
	b.whole.Store(b.size == 0)
	return b
}

func (b *body) Read(p []byte) (int, error) {
	if e := b.failure.Load(); e != nil {
		return 0, *e
	}
	b.touch()
	n, err := b.r.Read(p)
	b.touch()
	b.read += int64(n)
	if over := b.read - b.limit; over > 0 {
		return n - int(min(over, int64(n))), b.fail(b.tooLarge(b.read))
	}
	// A service that knows the size may stop reading before it sees the end.
	if b.read == b.size || err == io.EOF && b.size < 0 {
		b.whole.Store(true)
	}
	switch {
	case err == nil:
		return n, nil
	case err == io.EOF && b.whole.Load():
		return n, io.EOF
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		return n, b.fail(badBody("the body ended after %d bytes, before its end; nothing was stored", b.read))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, b.fail(badBody("the body stalled after %d bytes; nothing was stored", b.read))
	}
	return n, b.fail(badBody("the body could not be read after %d bytes (%v); nothing was stored", b.read, err))
}

func (b *body) fail(err error) error {
	b.failure.Store(&err)
	return err
}

// explain returns the failure of the write that read b as it may be told. Nothing commits before the body has been read to
// its end, so until then every failure is a plain one.
func (b *body) explain(err error) error {
	if err == nil {
		return nil
	}
	if e := b.failure.Load(); e != nil {
		return *e
	}
	if !b.whole.Load() {
		return err
	}
	return api.WriteFailed(err)
}
