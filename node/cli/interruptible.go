package cli

import (
	"context"
	"io"
)

// interruptible makes reads of standard input end with ctx. A read that is under way then is left behind: nothing but the end
// of the process ends it.
type interruptible struct {
	ctx  context.Context
	r    io.Reader
	buf  []byte
	left []byte
	done chan readResult
}

type readResult struct {
	n   int
	err error
}

func newInterruptible(ctx context.Context, r io.Reader) *interruptible {
	return &interruptible{ctx: ctx, r: r, buf: make([]byte, valueChunk), done: make(chan readResult, 1)}
}

func (i *interruptible) Read(p []byte) (int, error) {
	if len(i.left) == 0 {
		go func() {
			n, err := i.r.Read(i.buf)
			i.done <- readResult{n, err}
		}()
		select {
		case res := <-i.done:
			i.left = i.buf[:res.n]
			if res.err != nil && res.n == 0 {
				return 0, res.err
			}
		case <-i.ctx.Done():
			return 0, i.ctx.Err()
		}
	}
	n := copy(p, i.left)
	i.left = i.left[n:]
	return n, nil
}
