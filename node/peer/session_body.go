package peer

import (
	"context"
	"errors"
	"io"
	"os"
	"time"
)

// errPeerGone is the cause of a handler's context when its caller has hung up.
var errPeerGone = errors.New("the caller is gone")

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// requestBody reads the body that follows a request, then watches the connection for its end. All but watch's goroutine
// belongs to the handler, and to the session once the handler has returned.
type requestBody struct {
	s        *session
	left     int64
	deadline time.Time
	gone     context.CancelCauseFunc
	err      error         // why the body, and with it the connection, is of no more use
	watching chan struct{} // closed when the watching goroutine has ended; nil when there is none
	over     bool          // the handler has returned
}

func (b *requestBody) Read(p []byte) (int, error) {
	switch {
	case b.over:
		return 0, errors.New("the body was read after its handler had returned")
	case b.err != nil:
		return 0, b.err
	case b.left == 0:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	until := time.Now().Add(progressTimeout)
	if b.deadline.Before(until) {
		until = b.deadline
	}
	if b.err = b.s.c.SetReadDeadline(until); b.err != nil {
		return 0, b.err
	}
	n, err := b.s.br.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	switch {
	case b.left == 0:
		b.watch()
		return n, nil
	case err != nil:
		b.err = unexpected(err)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			b.gone(errPeerGone)
		}
	}
	return n, b.err
}

// watch notices that the caller hangs up while the handler works: the caller sends nothing before it has its answer, so
// whatever ends a read is the end.
func (b *requestBody) watch() {
	b.watching = make(chan struct{})
	if err := b.s.c.SetReadDeadline(time.Time{}); err != nil {
		close(b.watching)
		b.gone(errPeerGone)
		return
	}
	go func() {
		defer close(b.watching)
		if _, err := b.s.br.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			b.gone(errPeerGone)
		}
	}()
}

// stop ends the watching, so that the next request can be read.
func (b *requestBody) stop() error {
	b.over = true
	if b.watching == nil {
		return nil
	}
	err := b.s.c.SetReadDeadline(longAgo)
	<-b.watching // an error means that the connection is closed, which ends the read too
	return err
}
