//go:build unix

package hitpath

import "syscall"

// restWriter writes what is left of a large value by as few calls as the kernel takes it in, and notes the progress of each. A
// net.Conn would not tell of it before the last one. It belongs to its connection's goroutine.
type restWriter struct {
	c     *conn
	raw   syscall.RawConn
	rest  []byte
	since int // bytes that were taken since progress was noted
	err   error
	try   func(fd uintptr) (done bool) // attempt, made once
}

// writeRest writes body. It reports false when this connection has no descriptor to write to.
func (c *conn) writeRest(body []byte) (done bool, err error) {
	if c.rest == nil {
		sc, ok := c.raw.(syscall.Conn)
		if !ok {
			return false, nil
		}
		raw, err := sc.SyscallConn()
		if err != nil {
			return true, err
		}
		c.rest = &restWriter{c: c, raw: raw}
		c.rest.try = c.rest.attempt
	}
	w := c.rest
	w.rest, w.since, w.err = body, 0, nil
	c.standing.set(phaseWrite, c.s.tick.Load())
	err = w.raw.Write(w.try)
	w.rest = nil // an idle connection keeps no value alive
	if err == nil {
		err = w.err
	}
	return true, err
}

// attempt writes until the kernel takes no more, and reports whether there is nothing left to do.
func (w *restWriter) attempt(fd uintptr) (done bool) {
	for len(w.rest) > 0 {
		n, err := syscall.Write(int(fd), w.rest)
		switch err {
		case nil:
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			return false
		default:
			w.err = err
			return true
		}
		w.rest = w.rest[n:]
		if w.since += n; w.since >= pieceBytes {
			w.since = 0
			w.c.standing.set(phaseWrite, w.c.s.tick.Load())
		}
	}
	return true
}
