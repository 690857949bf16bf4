package client

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"kvmesh/raftstore/kv"
)

// DefaultCloudflareRetryFor is how long one call to a server of the Workers KV REST API goes on while that asks to wait:
// twice the window of 5 minutes in which Cloudflare counts its 1,200 requests.
const DefaultCloudflareRetryFor = 10 * time.Minute

// CloudflareOptions name a namespace on a server of the Workers KV REST API.
type CloudflareOptions struct {
	// URL is what the API's paths follow, for example https://api.cloudflare.com/client/v4. A URL without a path gets
	// that path.
	URL string
	// Account and Namespace are ids.
	Account, Namespace string
	// Token is the API token, sent as the bearer token; empty: none.
	Token string
	// Parallel is the most requests under way at a time; 0 = DefaultParallel.
	Parallel int
	// RetryFor bounds the attempts of one call; 0 = DefaultCloudflareRetryFor, negative = never.
	RetryFor time.Duration
	// RootCAs are the certificates that an https URL is believed by; nil = the system's.
	RootCAs *x509.CertPool
	// Transport replaces the HTTP transport, for tests.
	Transport http.RoundTripper
}

// Cloudflare reads one namespace of any server of the Workers KV REST API. Calls that meet 408, 429, a 5xx or a broken
// connection are repeated, no sooner than Retry-After says. It is safe for concurrent use. Close ends idle connections.
type Cloudflare struct {
	c    *Client
	path string // of the namespace, escaped
}

// NewCloudflare returns a client. It does not connect yet.
func NewCloudflare(o CloudflareOptions) (*Cloudflare, error) {
	base, err := parseAPIBase(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Parallel <= 0 {
		o.Parallel = DefaultParallel
	}
	if o.RetryFor == 0 {
		o.RetryFor = DefaultCloudflareRetryFor
	}
	c := newClient(base, Options{Token: o.Token, Parallel: o.Parallel, RetryFor: o.RetryFor, RootCAs: o.RootCAs, Transport: o.Transport})
	c.foreign = true
	return &Cloudflare{
		c: c, path: "/accounts/" + EscapeSegment(o.Account) + "/storage/kv/namespaces/" + EscapeSegment(o.Namespace),
	}, nil
}

func parseAPIBase(raw string) (string, error) {
	const example = "https://api.cloudflare.com/client/v4"
	u, err := url.Parse(raw)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		shown := raw
		if err == nil {
			shown = u.Redacted()
		}
		return "", fmt.Errorf("%q is not the base URL of an API: scheme http or https, a host, and a path; write for example %s", shown, example)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	if path == "" {
		path = "/client/v4"
	}
	return u.Scheme + "://" + u.Host + path, nil
}

// URL is the base URL.
func (cf *Cloudflare) URL() string { return cf.c.base }

// Close ends idle connections.
func (cf *Cloudflare) Close() { cf.c.Close() }

// CloudflareKey is one key of a listing.
type CloudflareKey struct {
	Name string `json:"name"`
	// Expiration in unix seconds, 0 = never.
	Expiration int64           `json:"expiration"`
	Metadata   json.RawMessage `json:"metadata"`
}

// Pages lists the keys that begin with prefix, page by page. It ends after the first error.
func (cf *Cloudflare) Pages(ctx context.Context, prefix string) iter.Seq2[[]CloudflareKey, error] {
	return func(yield func([]CloudflareKey, error) bool) {
		for cursor := ""; ; {
			page, next, err := cf.list(ctx, prefix, cursor)
			for attempt := 1; attempt < foreignAttempts && errors.Is(err, io.ErrUnexpectedEOF) && ctx.Err() == nil; attempt++ {
				page, next, err = cf.list(ctx, prefix, cursor) // the connection broke within the answer
			}
			if err == nil && next != "" && next == cursor {
				err = errors.New("the listing does not go on: the server returned the cursor it was given")
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(page, nil) || next == "" {
				return
			}
			cursor = next
		}
	}
}

func (cf *Cloudflare) list(ctx context.Context, prefix, cursor string) (keys []CloudflareKey, next string, err error) {
	q := url.Values{"limit": {strconv.Itoa(kv.MaxListLimit)}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
	var doc struct {
		Success *bool            `json:"success"`
		Errors  []ForeignProblem `json:"errors"`
		Result  []CloudflareKey  `json:"result"`
		Info    struct {
			Cursor  string `json:"cursor"`
			Cursors struct {
				After string `json:"after"`
			} `json:"cursors"`
		} `json:"result_info"`
	}
	if err := cf.c.readJSON(ctx, call{method: http.MethodGet, path: cf.path + "/keys", query: q, repeatable: true}, &doc); err != nil {
		return nil, "", err
	}
	switch {
	case doc.Success == nil:
		return nil, "", fmt.Errorf("%s answered a listing with JSON that is no envelope of the Workers KV REST API; is it the base URL of one?", cf.c.base)
	case !*doc.Success:
		return nil, "", &ForeignError{Status: http.StatusOK, Problems: doc.Errors}
	}
	if next = doc.Info.Cursor; next == "" {
		next = doc.Info.Cursors.After
	}
	return doc.Result, next, nil
}

// Get starts to read a value, whose size is -1 when the server does not tell it. The caller closes it.
func (cf *Cloudflare) Get(ctx context.Context, key string) (value io.ReadCloser, size int64, err error) {
	resp, err := cf.c.do(ctx, call{method: http.MethodGet, path: cf.path + "/values/" + EscapeSegment(key), repeatable: true})
	if err != nil {
		return nil, 0, err
	}
	return resp.Body, resp.ContentLength, nil
}

// ForeignProblem is one error of an envelope.
type ForeignProblem struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// ForeignError is an answer of another service that says no.
type ForeignError struct {
	Status   int
	Problems []ForeignProblem
	// Text is the beginning of an answer that was no envelope.
	Text string
	// RetryAfter is what the server asked for; 0 when it asked for nothing.
	RetryAfter time.Duration
	// Attempts is how often the request was sent.
	Attempts int
}

func (e *ForeignError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the server answered HTTP %d %s", e.Status, http.StatusText(e.Status))
	for i, p := range e.Problems {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		fmt.Fprintf(&b, "%s [code: %d]", firstLine(p.Message), p.Code)
	}
	if len(e.Problems) == 0 && e.Text != "" {
		b.WriteString(": " + e.Text)
	}
	if e.Attempts > 1 {
		fmt.Fprintf(&b, " (tried %d times)", e.Attempts)
	}
	return b.String()
}

// Denied says whether the server does not know, or not trust, who asked.
func (e *ForeignError) Denied() bool {
	return e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden
}

// codeKeyNotFound is the API's code for a key that does not exist.
const codeKeyNotFound = 10009

// KeyNotFound says whether the key, and nothing above it, does not exist.
func (e *ForeignError) KeyNotFound() bool {
	if e.Status != http.StatusNotFound {
		return false
	}
	for _, p := range e.Problems {
		if p.Code == codeKeyNotFound {
			return true
		}
	}
	return false
}

// maxForeignProblems bounds what is kept of an error.
const maxForeignProblems = 5

// readForeign turns an answer of another service into a ForeignError, and closes its body.
func readForeign(resp *http.Response) *ForeignError {
	defer func() { _ = resp.Body.Close() }()                     // the answer is all that is wanted
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBytes)) // a body cut short is judged as far as it came
	e := &ForeignError{Status: resp.StatusCode, RetryAfter: retryTime(resp.Header.Get("Retry-After"), time.Now())}
	var doc struct {
		Errors []ForeignProblem `json:"errors"`
	}
	if err := json.Unmarshal(b, &doc); err == nil && len(doc.Errors) > 0 {
		e.Problems = doc.Errors[:min(len(doc.Errors), maxForeignProblems)]
	} else {
		e.Text = firstLine(string(b))
	}
	return e
}

// retryTime reads a Retry-After header in either of its forms (RFC 9110, section 10.2.3).
func retryTime(v string, now time.Time) time.Duration {
	if at, err := http.ParseTime(v); err == nil {
		return max(at.Sub(now), 0)
	}
	return retryAfter(v)
}

// foreignAttempts is how often a call is sent to a service that fails without saying when to come back.
const foreignAttempts = 6

// passing says whether a failure of another service may not last: it asks to wait, which may go on for long, or it was
// broken, or the connection was.
func passing(err error, attempt int) bool {
	var e *ForeignError
	if errors.As(err, &e) {
		switch {
		case e.Status == http.StatusTooManyRequests:
			return true
		case e.Status == http.StatusRequestTimeout || e.Status >= http.StatusInternalServerError:
			return e.RetryAfter > 0 || attempt < foreignAttempts
		}
		return false
	}
	var broken *brokenError
	return errors.As(err, &broken) && attempt < foreignAttempts
}
