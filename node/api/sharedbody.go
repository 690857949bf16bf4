package api

import (
	"io"
	"net/http"

	"kvmesh/raftstore/kv"
)

// ValueBody is the body of a PUT on its way to Service.Put: it holds the limit of a value while it streams, and turns what
// goes wrong with it into errors that can be told.
type ValueBody = valueBody

// NewValueBody returns the body that r gives: size bytes, -1 when it is not known. Each read calls touch, before and after
// it.
func NewValueBody(r io.Reader, size int64, touch func()) *ValueBody {
	return newValueBody(r, size, kv.MaxValueBytes, touch)
}

// Explain returns the failure of the Put that read b as it may be told: what was wrong with the body, or, once the body has
// been read to its end, CodeOutcomeUnknown for an error without a code.
func (b *valueBody) Explain(err error) error { return b.explain(err) }

// ValidateNamespaceRef checks a name that may be a namespace's id or its title.
func ValidateNamespaceRef(ref string) error { return validateRef(ref) }

// RetryHeader says when to send a refused request again, where that will help.
func RetryHeader(h http.Header, status int, e *kv.Error) { retryHeader(h, status, e) }
