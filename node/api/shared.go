package api

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"kvmesh/raftstore/kv"
)

// What the surfaces of a node have in common, for those in packages of their own.

// IdleContext returns a context that ends when touch has not been called for d. stop releases it.
func IdleContext(parent context.Context, d time.Duration) (ctx context.Context, touch, stop func()) {
	return idleContext(parent, d)
}

// RawPath is the path of a request as the client sent it, percent-encoded.
func RawPath(u *url.URL) string { return rawPath(u) }

// PlainEncoding refuses a request whose body has a content coding, which would be stored as it is.
func PlainEncoding(r *http.Request) error { return plainEncoding(r) }

// Expired reports whether mesh time has reached a key's expiry (unix seconds, 0 = never).
func Expired(expiry int64, now time.Time) bool { return expired(expiry, now) }

// AsError is what a client may be told of err: the *kv.Error in its chain, CodeDeadlineExceeded for a context's, and else
// CodeInternal without err's text.
func AsError(err error) *kv.Error { return asError(err) }

// WriteFailed returns err, the failure of a write, as it may be told: one without a code becomes CodeOutcomeUnknown, because
// the write may still land.
func WriteFailed(err error) error { return writeFailed(err) }

// OpenValue opens the body of a value that exists, whether it is in memory or has to be streamed. Each read of a streamed
// one calls touch, before and after it. The caller closes what it returns; ctx must last until then.
func OpenValue(ctx context.Context, v *Value, touch func()) (io.ReadCloser, error) {
	if v.Open == nil || v.Size == 0 {
		if int64(len(v.Bytes)) != v.Size {
			return nil, fmt.Errorf("value: %d bytes in memory, %d announced", len(v.Bytes), v.Size)
		}
		return io.NopCloser(bytes.NewReader(v.Bytes)), nil
	}
	opened, err := v.Open(ctx, 0, v.Size)
	if err != nil {
		return nil, err
	}
	return &touchingBody{ReadCloser: opened, touch: touch}, nil
}
