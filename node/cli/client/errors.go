package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvmesh/raftstore/kv"
)

// Error is an answer of the node that says no.
type Error struct {
	Status  int
	Code    kv.Code // empty when the answer was not one of a kvmesh node
	Message string
	Field   string
	// RetryAfter is what the node asked for; 0 when it asked for nothing.
	RetryAfter time.Duration
	// Attempts is how often the request was sent.
	Attempts int

	body []byte // of the answer, as far as it was read
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	if e.Code != "" {
		fmt.Fprintf(&b, " (%s, HTTP %d", e.Code, e.Status)
	} else {
		fmt.Fprintf(&b, " (HTTP %d", e.Status)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, ", tried %d times", e.Attempts)
	}
	b.WriteByte(')')
	return b.String()
}

// UnreachableError says that no connection to the node came about, so that nothing was sent.
type UnreachableError struct {
	URL string
	Err error
}

func (e *UnreachableError) Error() string { return fmt.Sprintf("cannot reach %s: %v", e.URL, e.Err) }

func (e *UnreachableError) Unwrap() error { return e.Err }

// UnknownOutcomeError says that the connection broke after a write had been sent: it may have been carried out, or may
// still be.
type UnknownOutcomeError struct {
	URL string
	Err error
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("the connection to %s broke before an answer came, so the write may or may not have been carried out: %v",
		e.URL, e.Err)
}

func (e *UnknownOutcomeError) Unwrap() error { return e.Err }

// brokenError says that the connection broke while something was read, which changes nothing.
type brokenError struct {
	URL string
	Err error
}

func (e *brokenError) Error() string {
	return fmt.Sprintf("the connection to %s broke: %v", e.URL, e.Err)
}

func (e *brokenError) Unwrap() error { return e.Err }

// CodeOf is the error code of err: the node's, outcome_unknown for an UnknownOutcomeError, and empty for everything else.
func CodeOf(err error) kv.Code {
	var e *Error
	var u *UnknownOutcomeError
	switch {
	case errors.As(err, &e):
		return e.Code
	case errors.As(err, &u):
		return kv.CodeOutcomeUnknown
	}
	return ""
}

// maxErrorBytes bounds what is read of an error's body: one that names all comparisons of a transaction fits.
const maxErrorBytes = 1 << 20

// readError turns an answer that is no success into an Error, and closes its body.
func (c *Client) readError(resp *http.Response) error {
	if c.foreign {
		return readForeign(resp)
	}
	return readError(resp)
}

func readError(resp *http.Response) *Error {
	defer func() { _ = resp.Body.Close() }()                     // the answer is all that is wanted
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // a body cut short is judged as far as it came
	e := &Error{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After")), body: b}
	var doc struct {
		Error struct {
			Code    kv.Code `json:"code"`
			Message string  `json:"message"`
			Field   string  `json:"field"`
		} `json:"error"`
	}
	if err := json.Unmarshal(b, &doc); err == nil && doc.Error.Code != "" {
		e.Code, e.Message, e.Field = doc.Error.Code, doc.Error.Message, doc.Error.Field
		return e
	}
	e.Code, e.Message = codeOfHead(resp), "the node answered "+resp.Status
	if line := firstLine(string(b)); line != "" && e.Code == "" {
		e.Message += ": " + line
	}
	return e
}

// codeOfHead guesses the code of an answer to HEAD, which has no body to say it.
func codeOfHead(resp *http.Response) kv.Code {
	if resp.Request == nil || resp.Request.Method != http.MethodHead {
		return ""
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return kv.CodeUnauthorized
	case http.StatusNotFound:
		return kv.CodeKeyNotFound
	case http.StatusPreconditionFailed:
		return kv.CodeConditionFailed
	case http.StatusServiceUnavailable:
		return kv.CodeUnavailable
	}
	return ""
}

// retryAfter reads the seconds of a Retry-After header; a date is not something a node of ours sends.
func retryAfter(v string) time.Duration {
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return 0
	}
	return time.Duration(n) * time.Second
}

// firstLine is the first line of s, at most 200 bytes, if it can be shown.
func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	if s = strings.TrimSpace(s); len(s) > 200 {
		s = s[:200]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, s)
}

// transportError sorts an error of the HTTP transport. connected tells whether there was a connection to send on.
func transportError(base, method string, connected bool, err error) error {
	var bad *bodyError
	switch {
	case errors.As(err, &bad):
		return bad.err // our own input failed, not the node
	case !connected && errors.Is(err, context.Canceled):
		return context.Canceled
	case !connected:
		return &UnreachableError{URL: base, Err: cause(err)}
	case method == http.MethodGet || method == http.MethodHead:
		return &brokenError{URL: base, Err: cause(err)}
	}
	return &UnknownOutcomeError{URL: base, Err: cause(err)}
}

// cause takes off the layers that repeat the method, the URL and the addresses.
func cause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	return err
}
