package cfbind

import (
	"io"
	"sync/atomic"
)

// counter counts the bytes that are read through it. Whoever asks for the count may do so while another goroutine reads.
type counter struct {
	r io.Reader
	n atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}
