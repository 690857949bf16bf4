package api

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"kvmesh/raftstore/kv"
)

// writeDoc is the answer to a write.
type writeDoc struct {
	Revision kv.Revision `json:"revision"` // 0 when nothing changed
	Bookmark string      `json:"bookmark"`
}

// putValue answers PUT of a key. Everything that can be refused is refused before the body is read.
func (s *surface) putValue(c *call) error {
	req := PutRequest{Key: c.rest, Size: c.r.ContentLength, Timing: c.Timing()}
	if err := kv.ValidateKey(c.rest); err != nil {
		return err
	}
	var err error
	if req.Expiry, err = c.q.expiry(s.svc.MeshTime()); err != nil {
		return err
	}
	if req.Cond, err = writeCond(c.r); err != nil {
		return err
	}
	if req.Metadata, err = metadata(c.r); err != nil {
		return err
	}
	if err := plainEncoding(c.r); err != nil {
		return err
	}
	if req.Size > s.maxBody {
		return valueTooLarge(fmt.Sprintf("%d bytes", req.Size), s.maxBody)
	}

	ctx, touch, stop := idleContext(c.r.Context(), s.timeout)
	defer stop()
	if req.Namespace, err = s.namespace(ctx, c); err != nil {
		return err
	}
	body := newValueBody(c.r.Body, req.Size, s.maxBody, touch)
	req.Body = body
	res, err := s.svc.Put(ctx, req)
	if err != nil {
		if body.failure.Load() != nil && c.r.ProtoMajor == 1 {
			// Without this net/http reads on for up to 256 KiB before it answers, and the client may have no more to send.
			c.w.Header().Set("Connection", "close")
		}
		return body.explain(err)
	}
	if res.Revision != 0 {
		stateHeaders(c.w.Header(), etag(res.Epoch, res.Revision), res.Revision, res.Expiry)
	}
	s.wrote(c, res)
	return nil
}

// deleteValue answers DELETE of a key. To delete a key that does not exist succeeds, with revision 0.
func (s *surface) deleteValue(c *call) error {
	if err := kv.ValidateKey(c.rest); err != nil {
		return err
	}
	cond, err := writeCond(c.r)
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	res, err := s.svc.Delete(ctx, DeleteRequest{Namespace: ns, Key: c.rest, Cond: cond, Timing: c.Timing()})
	if err != nil {
		return writeFailed(err)
	}
	if res.Revision != 0 {
		c.w.Header().Set("Kv-Revision", strconv.FormatUint(uint64(res.Revision), 10))
	}
	s.wrote(c, res)
	return nil
}

func (s *surface) wrote(c *call, res WriteResult) {
	bookmarkHeader(c.w.Header(), res.Epoch, res.AsOf)
	writeJSON(c.w, c.r, http.StatusOK, writeDoc{res.Revision, kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf}.String()})
}

// plainEncoding refuses a body with a content coding: it would be stored as it is, and later be served without the
// header that says so.
func plainEncoding(r *http.Request) error {
	for _, line := range r.Header.Values("Content-Encoding") {
		if line = strings.TrimSpace(line); line != "" && !strings.EqualFold(line, "identity") {
			return kv.FieldErrorf(kv.CodeInvalidBody, "Content-Encoding",
				"Content-Encoding %s is not taken; send the value as it is", strconv.Quote(shown(line)))
		}
	}
	return nil
}

func valueTooLarge(has string, limit int64) error {
	return kv.FieldErrorf(kv.CodeValueTooLarge, "value", "the value has %s; the limit is %d bytes%s", has, limit, inMiB(limit))
}

func inMiB(n int64) string {
	if n < 1<<20 || n%(1<<20) != 0 {
		return ""
	}
	return fmt.Sprintf(" (%d MiB)", n>>20)
}

// valueBody is the body of a PUT: it holds the limit while it streams, turns what goes wrong into errors that can be
// told, and remembers them, because on its way through the service an error may lose its form.
type valueBody struct {
	r     io.Reader
	limit int64
	size  int64 // announced, -1 = not
	read  int64
	touch func()

	failure atomic.Pointer[kv.Error] // nil until something went wrong
	whole   atomic.Bool              // every byte has been given out
}

func newValueBody(r io.Reader, size, limit int64, touch func()) *valueBody {
	b := &valueBody{r: r, limit: limit, size: size, touch: touch}
	b.whole.Store(size == 0)
	return b
}

// Read gives at most limit bytes, then CodeValueTooLarge if there are more.
func (b *valueBody) Read(p []byte) (int, error) {
	if e := b.failure.Load(); e != nil {
		return 0, e
	}
	b.touch()
	n, err := b.r.Read(p)
	b.touch()
	b.read += int64(n)
	if over := b.read - b.limit; over > 0 {
		return n - int(min(over, int64(n))), b.fail(asError(valueTooLarge(fmt.Sprintf("more than %d bytes", b.limit), b.limit)))
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
		return n, b.fail(b.short())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, b.fail(kv.FieldErrorf(kv.CodeInvalidBody, "value",
			"the body stalled after %d bytes; nothing was stored", b.read))
	}
	return n, b.fail(kv.FieldErrorf(kv.CodeInvalidBody, "value",
		"the body could not be read after %d bytes (%v); nothing was stored", b.read, err))
}

func (b *valueBody) short() *kv.Error {
	if b.size < 0 {
		return kv.FieldErrorf(kv.CodeInvalidBody, "value",
			"the body ended after %d bytes without its last chunk; nothing was stored", b.read)
	}
	return kv.FieldErrorf(kv.CodeInvalidBody, "value",
		"the body ended after %d bytes, Content-Length says %d; nothing was stored", b.read, b.size)
}

func (b *valueBody) fail(e *kv.Error) error {
	b.failure.Store(e)
	return e
}

// explain returns the failure of the Put that read b as it may be told. Nothing commits before the body has been read
// to its end, so until then every failure is a plain one.
func (b *valueBody) explain(err error) error {
	if e := b.failure.Load(); e != nil {
		return e
	}
	if !b.whole.Load() {
		return err
	}
	return writeFailed(err)
}
