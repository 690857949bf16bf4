package kv

import (
	"errors"
	"fmt"
	"time"
)

// Code is one of the closed set of error codes. Each HTTP surface has one table from codes to statuses and texts.
type Code string

// The codes.
const (
	// 4xx: the request is wrong, and sending it again unchanged will not help.
	CodeInvalidKey        Code = "invalid_key"
	CodeKeyTooLong        Code = "key_too_long"
	CodeValueTooLarge     Code = "value_too_large"
	CodeInvalidMetadata   Code = "invalid_metadata"
	CodeMetadataTooLarge  Code = "metadata_too_large"
	CodeInvalidExpiration Code = "invalid_expiration"
	CodeInvalidParameter  Code = "invalid_parameter"
	CodeInvalidCursor     Code = "invalid_cursor"
	CodeInvalidBody       Code = "invalid_body"
	CodeInvalidTitle      Code = "invalid_title"
	CodeKeyNotFound       Code = "key_not_found"
	CodeNamespaceNotFound Code = "namespace_not_found"
	CodeNamespaceExists   Code = "namespace_exists"
	CodeConditionFailed   Code = "condition_failed"
	CodeConflict          Code = "conflict"          // a transaction whose comparisons do not hold
	CodeTooLarge          Code = "request_too_large" // a call of too many items, or of too many bytes in all
	CodeUnauthorized      Code = "unauthorized"
	CodeNotFound          Code = "not_found"
	CodeMethodNotAllowed  Code = "method_not_allowed"
	CodeTooManyRequests   Code = "too_many_requests"
	CodeRefused           Code = "refused" // it would do harm as things are; the message says what has to be done first

	// 5xx: the mesh cannot do it now; the request may be sent again, except after CodeOutcomeUnknown.
	CodeNoLeader          Code = "no_leader"
	CodeNoQuorum          Code = "no_quorum"
	CodeDiskFull          Code = "disk_full"
	CodeStaleBeyondLimit  Code = "stale_beyond_limit"
	CodeOverloaded        Code = "overloaded"
	CodeOutcomeUnknown    Code = "outcome_unknown"
	CodeUnavailable       Code = "unavailable"
	CodeNotLeader         Code = "not_leader" // between nodes only: ask Leader instead
	CodeEpochChanged      Code = "epoch_changed"
	CodeInternal          Code = "internal"
	CodeDeadlineExceeded  Code = "deadline_exceeded"
	CodeUnsupportedByPeer Code = "unsupported_by_peer"
)

// Error is an error with a code. Message names the thing, the limit and the remedy; Field names the parameter or header.
type Error struct {
	Code    Code
	Message string
	Field   string
	// RetryAfter is how long a client should wait; 0 says nothing.
	RetryAfter time.Duration
	// Revision that a failed condition met (CodeConditionFailed), 0 when the key does not exist.
	Revision Revision
	// Leader is the node id to ask instead (CodeNotLeader), empty when unknown.
	Leader string
}

func (e *Error) Error() string {
	if e.Field != "" {
		return fmt.Sprintf("%s: %s (%s)", e.Code, e.Message, e.Field)
	}
	return fmt.Sprintf("%s: %s", e.Code, e.Message)
}

// Is makes errors.Is(err, &Error{Code: c}) compare codes only.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Errorf makes an Error without a field.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// FieldErrorf makes an Error about one parameter or header.
func FieldErrorf(code Code, field, format string, args ...any) *Error {
	return &Error{Code: code, Field: field, Message: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of the first Error in err's chain, CodeInternal for any other error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
