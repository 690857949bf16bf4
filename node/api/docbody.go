package api

import (
	"errors"
	"fmt"
	"io"
	"os"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxDocBody is the largest body of a bulk call or transaction: 100 MB, as Workers KV has it.
	maxDocBody = 100_000_000
	// drainBytes are read of a body that was refused, so that a client that sends all of it before it listens hears why.
	drainBytes = 4 << 20
)

// docBody is the body of a call that carries many items. It holds the limit while it streams and turns what goes wrong into
// errors that can be told.
type docBody struct {
	r           io.Reader
	size, limit int64 // announced (-1 = not); the most that is taken
	read        int64
	touch       func()
	err         error // sticky
}

// docBody refuses a body that says itself that it is too large.
func (s *surface) docBody(c *call, touch func()) (*docBody, error) {
	if err := plainEncoding(c.r); err != nil {
		return nil, err
	}
	b := &docBody{r: c.r.Body, size: c.r.ContentLength, limit: s.maxDoc, touch: touch}
	if b.size > b.limit {
		return nil, b.tooLarge(fmt.Sprintf("%d bytes", b.size))
	}
	return b, nil
}

func (b *docBody) tooLarge(has string) error {
	return kv.FieldErrorf(kv.CodeTooLarge, "body",
		"the body has %s; the limit is %d bytes: send the items in several calls", has, b.limit)
}

func (b *docBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	b.touch()
	n, err := b.r.Read(p)
	b.touch()
	b.read += int64(n)
	switch {
	case b.read > b.limit:
		b.err = b.tooLarge(fmt.Sprintf("more than %d bytes", b.limit))
	case err == nil:
		return n, nil
	case err == io.EOF && (b.size < 0 || b.read == b.size):
		b.err = io.EOF
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		b.err = kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body ended after %d bytes, before its end", b.read)
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body stalled after %d bytes", b.read)
	default:
		b.err = kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body could not be read after %d bytes (%v)", b.read, err)
	}
	return n, b.err
}

// drain reads a part of what is left. What does not come is no loss.
func (b *docBody) drain() { _, _ = io.CopyN(io.Discard, b, drainBytes) }

// docError is what a client is told of a document that could not be read to its end.
func docError(err error) error {
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	switch {
	case errors.As(err, &syntax):
		return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is %v", syntax)
	case errors.As(err, &value):
		return kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is not as this call takes it: %v", value)
	}
	return err
}
