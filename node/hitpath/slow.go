package hitpath

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
)

// answerSlowly has the handler answer a request that memory cannot: the key is not held or is known to be absent, or the
// handler refuses the request, or has to look at it. The connection waits meanwhile, and stays. done is false when nothing
// has been answered, keep when the connection has to be closed.
func (c *conn) answerSlowly(request []byte) (done, keep bool) {
	if !c.flush() {
		return true, false
	}
	text := c.s.memory.text.Get().(*bufio.Reader)
	defer c.s.memory.text.Put(text)
	text.Reset(bytes.NewReader(request))
	r, err := http.ReadRequest(text)
	if err != nil { // net/http is stricter than this package after all: it says so itself
		return false, true
	}
	c.standing.set(phaseBusy, c.s.tick.Load())
	ctx, cancel := context.WithCancel(c.taken.Context(c.s.ctx))
	defer cancel()
	c.abandon.Store(&cancel)
	defer c.abandon.Store(nil)
	r = r.WithContext(ctx)
	if addr := c.raw.RemoteAddr(); addr != nil {
		r.RemoteAddr = addr.String()
	}
	w := &answer{c: c, isHEAD: r.Method == http.MethodHead, header: make(http.Header)}
	c.taken.Begin()
	defer c.taken.End()
	return true, w.run(r)
}

// answer is what a handler writes, in the form that net/http gives it.
type answer struct {
	c       *conn
	header  http.Header
	isHEAD  bool
	status  int   // 0 until the head is written
	length  int64 // of the body, as announced
	written int64
	err     error // the first that a write met; none is made afterwards
}

var errNoLength = errors.New("the handler does not say how long its answer is")

// run has the handler answer, and reports whether the connection is as before.
func (w *answer) run(r *http.Request) (keep bool) {
	defer func() {
		p := recover()
		switch {
		case p == nil:
			return
		case p != any(http.ErrAbortHandler):
			w.c.s.log.Error("panic while serving", "panic", p, "stack", string(debug.Stack()))
		}
		keep = false
	}()
	w.c.s.opts.Handler.ServeHTTP(w, r)
	if w.status == 0 && w.err == nil {
		w.err = errNoLength
	}
	w.send()
	if errors.Is(w.err, errNoLength) {
		w.c.s.log.Error("an answer was cut", "path", r.URL.Path, "err", w.err)
	}
	short := w.written < w.length && !w.isHEAD
	return w.err == nil && !short && w.header.Get("Connection") != "close"
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if w.status != 0 || status < http.StatusOK || w.err != nil {
		return
	}
	w.status = status
	w.c.abandon.Store(nil) // from here on the writes tell whether anybody is there
	var err error
	if w.length, err = strconv.ParseInt(w.header.Get("Content-Length"), 10, 64); err != nil || w.length < 0 {
		w.err = errNoLength
		return
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", status, http.StatusText(status))
	_ = w.header.Write(&b) // to memory
	out, ok := w.c.room(b.Len())
	if !ok {
		w.err = errNoRoom
		return
	}
	out = append(out, b.Bytes()...)
	out = append(out, *w.c.s.date.Load()...)
	*w.c.out = append(out, "\r\n"...)
}

var errNoRoom = errors.New("what was answered before could not be written")

func (w *answer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	switch {
	case w.err != nil:
		return 0, w.err
	case int64(len(p)) > w.length-w.written:
		return 0, http.ErrContentLength
	}
	w.written += int64(len(p))
	if w.isHEAD {
		return len(p), nil
	}
	n := len(p)
	for len(p) > 0 && w.err == nil {
		free := cap(*w.c.out) - len(*w.c.out)
		if free == 0 {
			w.send()
			continue
		}
		piece := p[:min(len(p), free)]
		*w.c.out = append(*w.c.out, piece...)
		p = p[len(piece):]
	}
	return n - len(p), w.err
}

// send writes what waits, through the connection that gives a status line its phrase.
func (w *answer) send() {
	out := w.c.out
	if out == nil || len(*out) == 0 {
		return
	}
	if w.err == nil {
		w.c.standing.set(phaseWrite, w.c.s.tick.Load())
		if _, w.err = w.c.taken.Write(*out); w.err != nil {
			w.c.cut()
		}
		w.c.standing.set(phaseBusy, w.c.s.tick.Load())
	}
	*out = (*out)[:0]
}
