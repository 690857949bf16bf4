package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"kvmesh/raftstore/kv"
)

// statuses is this surface's one table from codes to statuses. Every code of kv has a row.
var statuses = map[kv.Code]int{
	kv.CodeInvalidKey:        http.StatusBadRequest,
	kv.CodeKeyTooLong:        http.StatusBadRequest,
	kv.CodeValueTooLarge:     http.StatusRequestEntityTooLarge,
	kv.CodeInvalidMetadata:   http.StatusBadRequest,
	kv.CodeMetadataTooLarge:  http.StatusBadRequest,
	kv.CodeInvalidExpiration: http.StatusBadRequest,
	kv.CodeInvalidParameter:  http.StatusBadRequest,
	kv.CodeInvalidCursor:     http.StatusBadRequest,
	kv.CodeInvalidBody:       http.StatusBadRequest,
	kv.CodeInvalidTitle:      http.StatusBadRequest,
	kv.CodeKeyNotFound:       http.StatusNotFound,
	kv.CodeNamespaceNotFound: http.StatusNotFound,
	kv.CodeNamespaceExists:   http.StatusConflict,
	kv.CodeConditionFailed:   http.StatusPreconditionFailed,
	kv.CodeConflict:          http.StatusConflict,
	kv.CodeTooLarge:          http.StatusRequestEntityTooLarge,
	kv.CodeUnauthorized:      http.StatusUnauthorized,
	kv.CodeNotFound:          http.StatusNotFound,
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

// internalMessage is all that a client learns of an error without a code: its text is for the log.
const internalMessage = "the node met an error of its own; its log says more"

// defaultRetryAfter is what a 429, 503 or 507 asks for when the error names nothing: about the time of an election.
const defaultRetryAfter = time.Second

// asError returns what a client is told about err.
func asError(err error) *kv.Error {
	var e *kv.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, errNoProgress):
		return kv.Errorf(kv.CodeDeadlineExceeded, "the mesh did not answer in time; send the request again")
	}
	return kv.Errorf(kv.CodeInternal, "%s", internalMessage)
}

// writeFailed returns err, the failure of a write, as it may be told: an error without a code says nothing about
// whether the write will still land, and a plain failure must not be claimed then.
func writeFailed(err error) error {
	var e *kv.Error
	if errors.As(err, &e) {
		return err
	}
	unknown := kv.Errorf(kv.CodeOutcomeUnknown,
		"the write may or may not have been carried out; read the state before sending it again")
	return fmt.Errorf("%w: %w", unknown, err)
}

// statusOf is the status of a code; one that is not in the table is a fault of the node.
func statusOf(code kv.Code) int {
	if status, ok := statuses[code]; ok {
		return status
	}
	return http.StatusInternalServerError
}

// WriteError answers err as this surface does: the status of its code and
// {"error":{"code","message","field"}}. An error that is no *kv.Error becomes CodeInternal, or CodeDeadlineExceeded for
// a context's, and its text is not shown. Nothing may have been written to w yet.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e := asError(err)
	writeErrorStatus(w, r, statusOf(e.Code), e)
}

func writeErrorStatus(w http.ResponseWriter, r *http.Request, status int, e *kv.Error) {
	h := w.Header()
	switch e.Code {
	case kv.CodeUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case kv.CodeConditionFailed:
		field := "If-Match"
		if len(r.Header.Values(field)) == 0 {
			field = "If-None-Match"
		}
		e = conditionFailed(e, field)
		h.Set("Kv-Revision", strconv.FormatUint(uint64(e.Revision), 10))
	}
	retryHeader(h, status, e)
	writeJSON(w, r, status, errorJSON{errorBody(e)})
}

// retryHeader says when to send the request again, where that will help.
func retryHeader(h http.Header, status int, e *kv.Error) {
	// A write whose outcome is unknown must be looked at before it is sent again, not after a delay.
	retriable := status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests ||
		status == http.StatusInsufficientStorage
	if retriable && e.Code != kv.CodeOutcomeUnknown {
		wait := e.RetryAfter
		if wait <= 0 {
			wait = defaultRetryAfter
		}
		h.Set("Retry-After", strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10))
	}
}

// conditionFailed returns e with a message that names the revision that the condition met, and with the condition as its
// field.
func conditionFailed(e *kv.Error, field string) *kv.Error {
	told := *e
	told.Field = field
	if e.Revision == 0 {
		told.Message = "the condition does not hold: the key does not exist"
	} else {
		told.Message = fmt.Sprintf("the condition does not hold: the key is at revision %d", e.Revision)
	}
	return &told
}

// errorJSON is the body of every error.
type errorJSON struct {
	Error errorDoc `json:"error"`
}

type errorDoc struct {
	Code    kv.Code `json:"code"`
	Message string  `json:"message"`
	Field   string  `json:"field,omitempty"`
}

func errorBody(e *kv.Error) errorDoc { return errorDoc{e.Code, e.Message, e.Field} }

// writeJSON answers with one small JSON document, which is built whole before the header goes out.
func writeJSON(w http.ResponseWriter, r *http.Request, status int, doc any) {
	body, err := marshal(doc)
	if err != nil {
		// The documents are structs of this package and of Service, without maps, channels or cycles.
		status, body = http.StatusInternalServerError, []byte(`{"error":{"code":"internal","message":"`+internalMessage+"\"}}\n")
	}
	h := w.Header()
	jsonHeader(h)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // an error means that the client has gone; there is nobody left to tell
	}
}

func jsonHeader(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}

// marshal is json.Marshal with a line break after it and without escaping for HTML, which no answer is shown as.
func marshal(doc any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(doc)
	return b.Bytes(), err
}
