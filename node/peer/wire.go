package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"kvmesh/raftstore/kv"
)

// Frame types of kvmesh-rpc/1. A request frame is followed by the raw bytes of its body, an answer too.
//
//	request:  method 2 | remaining time in ms 4, 0 = none given | hops 1 | body length 8 | arguments (msgpack)
//	response: status 1 | body length 8 | result, or Failure (msgpack)
//
// The status is statusOK or statusError, plus statusClosing when the connection ends after this answer. A goodbye is empty:
// a node that shuts down says by it that it looks at no further request of the connection, as HTTP/2 does by GOAWAY (RFC
// 9113, section 6.8), so that whoever has just sent one may turn to another node.
const (
	frameRequest  byte = 1
	frameResponse byte = 2
	frameGoodbye  byte = 3

	requestHead  = 2 + 4 + 1 + 8
	responseHead = 1 + 8

	statusOK      byte = 0
	statusError   byte = 1
	statusClosing byte = 0x80
)

// Method is the number of a request's kind. A new kind gets a new number, never an old one's.
type Method uint16

// requestHeader is a request frame without its arguments.
type requestHeader struct {
	method   Method
	timeout  time.Duration // 0 = none given
	hops     uint8
	bodySize int64
}

// appendRequest appends a whole request frame.
func appendRequest(dst []byte, h requestHeader, args []byte) ([]byte, error) {
	if len(args) > MaxPayload-requestHead {
		return dst, fmt.Errorf("%w: arguments of %d bytes; the limit is %d", ErrFrame, len(args), MaxPayload-requestHead)
	}
	ms := uint32(0)
	if h.timeout > 0 { // rounded up: what is left of the last millisecond is not "no limit"
		ms = uint32(min((h.timeout+time.Millisecond-1)/time.Millisecond, math.MaxUint32))
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(2+requestHead+len(args)))
	dst = append(dst, frameVersion, frameRequest)
	dst = binary.BigEndian.AppendUint16(dst, uint16(h.method))
	dst = binary.BigEndian.AppendUint32(dst, ms)
	dst = append(dst, h.hops)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.bodySize))
	return append(dst, args...), nil
}

// parseRequest reads the payload of a request frame; args aliases it.
func parseRequest(payload []byte) (h requestHeader, args []byte, err error) {
	if len(payload) < requestHead {
		return h, nil, fmt.Errorf("%w: a request of %d bytes", ErrFrame, len(payload))
	}
	h.method = Method(binary.BigEndian.Uint16(payload))
	h.timeout = time.Duration(binary.BigEndian.Uint32(payload[2:])) * time.Millisecond
	h.hops = payload[6]
	size := binary.BigEndian.Uint64(payload[7:])
	if size > math.MaxInt64 {
		return h, nil, fmt.Errorf("%w: a body of %d bytes", ErrFrame, size)
	}
	h.bodySize = int64(size)
	return h, payload[requestHead:], nil
}

// responseHeader is a response frame without its result.
type responseHeader struct {
	failed   bool // the result is a Failure, and there is no body
	closing  bool // the connection ends after this answer
	bodySize int64
}

// appendResponse appends a whole response frame.
func appendResponse(dst []byte, h responseHeader, result []byte) ([]byte, error) {
	if len(result) > MaxPayload-responseHead {
		return dst, fmt.Errorf("%w: a result of %d bytes; the limit is %d", ErrFrame, len(result), MaxPayload-responseHead)
	}
	status := statusOK
	if h.failed {
		status = statusError
	}
	if h.closing {
		status |= statusClosing
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(2+responseHead+len(result)))
	dst = append(dst, frameVersion, frameResponse, status)
	dst = binary.BigEndian.AppendUint64(dst, uint64(h.bodySize))
	return append(dst, result...), nil
}

// parseResponse reads the payload of a response frame; result aliases it.
func parseResponse(payload []byte) (h responseHeader, result []byte, err error) {
	if len(payload) < responseHead {
		return h, nil, fmt.Errorf("%w: a response of %d bytes", ErrFrame, len(payload))
	}
	status := payload[0] &^ statusClosing
	size := binary.BigEndian.Uint64(payload[1:])
	if status > statusError || size > math.MaxInt64 || status == statusError && size != 0 {
		return h, nil, fmt.Errorf("%w: status %#02x with a body of %d bytes", ErrFrame, payload[0], size)
	}
	h = responseHeader{failed: status == statusError, closing: payload[0]&statusClosing != 0, bodySize: int64(size)}
	return h, payload[responseHead:], nil
}

// maxWireText bounds each text of an error that travels.
const maxWireText = 4 << 10

// Failure is a kv.Error on the wire: a whole answer, or a part of one whose parts have outcomes of their own.
type Failure struct {
	Code         string
	Message      string
	Field        string
	RetryAfterMs int64
	Revision     uint64
	Leader       string
}

// KV is the error that travelled.
func (w Failure) KV() *kv.Error {
	retry := time.Duration(0)
	if w.RetryAfterMs > 0 {
		retry = time.Duration(min(w.RetryAfterMs, math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	}
	code := kv.Code(w.Code)
	if code == "" {
		code = kv.CodeInternal
	}
	return &kv.Error{
		Code: code, Message: w.Message, Field: w.Field,
		RetryAfter: retry, Revision: kv.Revision(w.Revision), Leader: w.Leader,
	}
}

// NewFailure turns any error into one that travels. What is no *kv.Error becomes CodeDeadlineExceeded when the time was up,
// else CodeInternal.
func NewFailure(err error) Failure {
	var e *kv.Error
	switch {
	case errors.As(err, &e):
	case errors.Is(err, context.DeadlineExceeded):
		e = kv.Errorf(kv.CodeDeadlineExceeded, "%v", err)
	default:
		e = kv.Errorf(kv.CodeInternal, "%v", err)
	}
	return Failure{
		Code:         clip(string(e.Code)),
		Message:      clip(e.Message),
		Field:        clip(e.Field),
		RetryAfterMs: int64((e.RetryAfter + time.Millisecond - 1) / time.Millisecond),
		Revision:     uint64(e.Revision),
		Leader:       clip(e.Leader),
	}
}

func clip(s string) string { return s[:min(len(s), maxWireText)] }
