package api

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/kv"
)

// Frame is what every HTTP surface of a node does around its calls: it counts and logs them, answers the errors that they
// return, turns a panic into an answer, and cuts an answer that fails after it has begun, so that no client takes it for
// complete.
type Frame struct {
	log     *slog.Logger
	metrics *metrics
	fail    func(http.ResponseWriter, *http.Request, error)
}

// NewFrame makes the frame of a surface, whose name labels its metrics. fail answers an error, of which nothing has been
// answered yet. It panics when the surface's metrics are registered already.
func NewFrame(surface string, log *slog.Logger, reg prometheus.Registerer, fail func(http.ResponseWriter, *http.Request, error)) *Frame {
	return &Frame{log: log, metrics: newMetrics(reg, surface), fail: fail}
}

// Exchange is one request and what is answered to it. It is for one goroutine; Frame.Serve fills it in.
type Exchange struct {
	w     *recorder
	r     *http.Request
	route string // the metrics label, one of a closed set
	code  kv.Code
	gone  bool // the client left before it was answered, or did not take the answer
	start time.Time
}

// Writer is where the answer goes.
func (x *Exchange) Writer() http.ResponseWriter { return x.w }

// Request is the request.
func (x *Exchange) Request() *http.Request { return x.r }

// Timing collects where the time goes; nil when nobody asked.
func (x *Exchange) Timing() *Timing { return x.w.timing }

// SetRoute names the call for metrics and logs, by one of a closed set of names.
func (x *Exchange) SetRoute(name string) { x.route = name }

// Serve runs one call. An error that it returns is answered, or, when the answer has begun, cuts it.
func (f *Frame) Serve(x *Exchange, w http.ResponseWriter, r *http.Request, run func() error) {
	*x = Exchange{w: &recorder{ResponseWriter: w}, r: r, route: routeOther, start: time.Now()}
	defer f.finish(x)
	var err error
	if x.w.timing, err = askedTiming(r, x.start); err == nil {
		err = run()
	}
	if err != nil {
		f.failed(x, err)
	}
}

// failed answers err. When the answer has begun already, all that is left is to cut it, so that the client does not take
// it for complete.
func (f *Frame) failed(x *Exchange, err error) {
	f.Note(x, err)
	if x.w.status != 0 {
		if !x.gone {
			f.log.Warn("answer cut short", "route", x.route, "sent", x.w.bytes, "err", err)
		}
		panic(http.ErrAbortHandler)
	}
	f.fail(x.w, x.r, err)
}

// Note counts and logs the failure of a call that answers it itself.
func (f *Frame) Note(x *Exchange, err error) {
	x.code = asError(err).Code
	x.gone = x.r.Context().Err() != nil || x.w.refused
	switch {
	case x.gone:
		f.log.Debug("client went away", "route", x.route, "sent", x.w.bytes, "err", err)
	case x.code == kv.CodeInternal:
		f.log.Error("request failed", "route", x.route, "err", err)
	case x.code == kv.CodeOutcomeUnknown:
		f.log.Warn("outcome of a write unknown", "route", x.route, "err", err)
	}
}

// Read counts one read of a key.
func (f *Frame) Read(v *Value) { f.metrics.read(v) }

// finish counts and logs a call, and turns a panic into an answer when none has begun. It is deferred.
func (f *Frame) finish(x *Exchange) {
	p := recover()
	if p != nil && p != any(http.ErrAbortHandler) {
		f.log.Error("panic while serving", "route", x.route, "panic", p, "stack", string(debug.Stack()))
		x.code = kv.CodeInternal
		if x.w.status == 0 {
			f.fail(x.w, x.r, kv.Errorf(kv.CodeInternal, "%s", internalMessage))
			p = nil
		}
	}
	d := time.Since(x.start)
	f.metrics.observe(x, d)
	f.log.Debug("request", "route", x.route, "status", x.w.status, "code", x.code, "bytes", x.w.bytes, "duration", d)
	if p != nil {
		panic(http.ErrAbortHandler)
	}
}

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status  int // 0 until the header is written
	bytes   int64
	refused bool    // the connection takes no more of the answer: that is nothing for an operator to see to
	timing  *Timing // nil = not asked for
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.begin(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.begin(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	if broken := net.Error(nil); errors.As(err, &broken) {
		w.refused = true
	}
	return n, err
}

// begin is told of the status just before the head is sent.
func (w *recorder) begin(status int) {
	w.status = status
	if w.timing != nil {
		w.timing.set(w.Header())
	}
}

// Unwrap lets http.ResponseController reach the connection.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }
