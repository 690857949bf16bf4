package cfbind

import (
	"errors"
	"io"
	"net/http"
	"strconv"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// statuses is this surface's one table from codes to statuses. Every code of kv has a row. What is not there is 404 only
// when it is a key: a Worker takes 404 and 410 for "no such key" and goes on with null.
var statuses = map[kv.Code]int{
	kv.CodeInvalidKey:        http.StatusBadRequest,
	kv.CodeKeyTooLong:        http.StatusRequestURITooLong,
	kv.CodeValueTooLarge:     http.StatusRequestEntityTooLarge,
	kv.CodeInvalidMetadata:   http.StatusBadRequest,
	kv.CodeMetadataTooLarge:  http.StatusRequestEntityTooLarge,
	kv.CodeInvalidExpiration: http.StatusBadRequest,
	kv.CodeInvalidParameter:  http.StatusBadRequest,
	kv.CodeInvalidCursor:     http.StatusBadRequest,
	kv.CodeInvalidBody:       http.StatusBadRequest,
	kv.CodeInvalidTitle:      http.StatusBadRequest,
	kv.CodeKeyNotFound:       http.StatusNotFound,
	kv.CodeNamespaceNotFound: http.StatusBadRequest,
	kv.CodeNamespaceExists:   http.StatusConflict,
	kv.CodeConditionFailed:   http.StatusPreconditionFailed,
	kv.CodeConflict:          http.StatusConflict,
	kv.CodeTooLarge:          http.StatusRequestEntityTooLarge,
	kv.CodeUnauthorized:      http.StatusUnauthorized,
	kv.CodeNotFound:          http.StatusBadRequest,
	kv.CodeMethodNotAllowed:  http.StatusMethodNotAllowed,
	kv.CodeTooManyRequests:   http.StatusTooManyRequests,
	kv.CodeRefused:           http.StatusConflict,

	kv.CodeNoLeader:          http.StatusServiceUnavailable,
	kv.CodeNoQuorum:          http.StatusServiceUnavailable,
	kv.CodeDiskFull:          http.StatusInsufficientStorage,
	kv.CodeStaleBeyondLimit:  http.StatusServiceUnavailable,
	kv.CodeOverloaded:        http.StatusServiceUnavailable,
	kv.CodeOutcomeUnknown:    http.StatusServiceUnavailable,
	kv.CodeUnavailable:       http.StatusServiceUnavailable,
	kv.CodeNotLeader:         http.StatusServiceUnavailable,
	kv.CodeEpochChanged:      http.StatusServiceUnavailable,
	kv.CodeInternal:          http.StatusInternalServerError,
	kv.CodeDeadlineExceeded:  http.StatusGatewayTimeout,
	kv.CodeUnsupportedByPeer: http.StatusNotImplemented,
}

// refuse returns p as an error that metrics and logs count as the client's, nil for none.
func refuse(p *cfkv.Problem) error {
	if p == nil {
		return nil
	}
	return errors.Join(p, kv.Errorf(kv.CodeInvalidParameter, "%s", p.Text))
}

// told is what a Worker sees of err.
func told(err error) (status int, text string) {
	var p *cfkv.Problem
	if errors.As(err, &p) {
		return p.Status, p.Text
	}
	e := api.AsError(err)
	status, ok := statuses[e.Code]
	switch {
	case mutLostNamespace && e.Code == kv.CodeNamespaceNotFound:
		return http.StatusNotFound, e.Message
	case !ok:
		status = http.StatusInternalServerError
	case status == http.StatusNotFound:
		return status, http.StatusText(status)
	case status >= http.StatusInternalServerError:
		return status, string(e.Code) + ": " + e.Message
	}
	return status, e.Message
}

// answerError answers err in the status line, and again in the body. The rest of the request's body is read first: a
// Worker finishes its upload before it listens.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	status, text := told(err)
	if _, whole := drain(r); !whole && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
	h := w.Header()
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	api.RetryHeader(h, status, api.AsError(err))
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	api.SetReason(r, status, text)
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text) // an error means that the client has gone; there is nobody left to tell
	}
}

// maxDrain bounds what is read of a body that is refused: four times what a good one has.
const maxDrain = 4 * kv.MaxValueBytes

// drain reads and counts what is left of a request's body, as far as it may be, and reports whether that was all of it.
// What stands still is given up by the server's deadlines.
func drain(r *http.Request) (n int64, whole bool) {
	// Who waits for 100 has not sent it, and reading would ask for it.
	if r.ContentLength > maxDrain || r.Header.Get("Expect") != "" {
		return 0, false
	}
	if mutNoDrain {
		return 0, true
	}
	n, err := io.CopyN(io.Discard, r.Body, maxDrain)
	return n, err == io.EOF
}
