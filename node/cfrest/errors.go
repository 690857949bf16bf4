package cfrest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// The API's codes. Those that are our choice, because nobody has recorded what the real service says, come last.
const (
	codeThrottled        = 971
	codeBadToken         = 1000
	codeBadHeaders       = 6003
	codeNoRoute          = 7003
	codeAuthMissing      = 9106
	codeAuth             = 10000
	codeKeyNotFound      = 10009
	codeBadNamespaceID   = 10011
	codeBadBody          = 10012
	codeNoNamespace      = 10013
	codeNamespaceExists  = 10014
	codeNoTitle          = 10019
	codeBadParameter     = 10029
	codeBadExpiration    = 10033
	codeBadTTL           = 10034
	codeNoFormField      = 10047
	codeBadMetadata      = 10147
	codeMethodNotAllowed = 10405

	codeInternal    = 10500
	codeUnavailable = 10503
)

// kindCodes are the codes of the limits. The real service's codes are known for three of them.
var kindCodes = map[cfkv.Kind]int{
	cfkv.KindKey: codeBadParameter, cfkv.KindTTL: codeBadTTL, cfkv.KindExpiration: codeBadExpiration,
	cfkv.KindCacheTTL: codeBadParameter, cfkv.KindMetadata: codeBadParameter, cfkv.KindValue: codeBadParameter,
	cfkv.KindList: codeBadParameter, cfkv.KindBulkGet: codeBadParameter, cfkv.KindTooLarge: codeBadParameter,
}

// apiError is an error as this surface tells it.
type apiError struct {
	status, code int
	text         string
	// bare says that the text stands alone; else it is wrapped as `<op>: '<text>'`.
	bare bool
	// pointer names the part of the body (RFC 6901), "" = none.
	pointer string
	allow   string    // of a wrong method
	cause   *kv.Error // what metrics, logs and retries go by
}

// Error is for the log.
func (e *apiError) Error() string {
	if e.code == codeInternal {
		return e.cause.Message
	}
	return fmt.Sprintf("%d: %s", e.code, e.text)
}

// Unwrap gives the code of kv.
func (e *apiError) Unwrap() error { return e.cause }

func refuse(status, code int, text string) *apiError {
	return &apiError{status: status, code: code, text: text, cause: kv.Errorf(kv.CodeInvalidParameter, "%s", text)}
}

// invalid refuses something in the query (pointer is empty) or in the body.
func invalid(pointer, format string, args ...any) *apiError {
	code := codeBadParameter
	if pointer != "" {
		code = codeBadBody
	}
	e := refuse(http.StatusBadRequest, code, fmt.Sprintf(format, args...))
	e.pointer = pointer
	return e
}

// badBody refuses the body as a whole.
func badBody(format string, args ...any) *apiError {
	return refuse(http.StatusBadRequest, codeBadBody, fmt.Sprintf(format, args...))
}

func bare(e *apiError) *apiError {
	e.bare = true
	return e
}

func badNamespaceID(id string) *apiError {
	why := "uuid: incorrect UUID length: "
	if len(id) == 32 {
		why = "invalid namespace format: "
	}
	return bare(refuse(http.StatusBadRequest, codeBadNamespaceID,
		"could not parse UUID from request's namespace_id: '"+why+cfkv.Shown(id)+"'"))
}

func noRoute(path string) *apiError {
	e := bare(refuse(http.StatusNotFound, codeNoRoute,
		"Could not route to "+cfkv.Shown(path)+", perhaps your object identifier is invalid?"))
	e.cause = kv.Errorf(kv.CodeNotFound, "no route")
	return e
}

func notAllowed(method, allow string) *apiError {
	e := bare(refuse(http.StatusMethodNotAllowed, codeMethodNotAllowed,
		cfkv.Shown(method)+" method not allowed for the api_token authentication scheme"))
	e.cause, e.allow = kv.Errorf(kv.CodeMethodNotAllowed, "no such method"), allow
	return e
}

func keyNotFound() *apiError {
	e := refuse(http.StatusNotFound, codeKeyNotFound, "key not found")
	e.cause = kv.Errorf(kv.CodeKeyNotFound, "key not found")
	return e
}

func throttled() *kv.Error {
	return &kv.Error{Code: kv.CodeTooManyRequests, Message: "the key was written less than a second ago", RetryAfter: time.Second}
}

// told returns err as the client is told of it: the texts of the service wrapped with the name of the call.
func (c *call) told(err error) *apiError {
	e := asAPIError(err)
	if e.bare || c.op == "" {
		return e
	}
	wrapped := *e
	wrapped.text, wrapped.bare = c.op+": '"+e.text+"'", true
	return &wrapped
}

// asAPIError is this surface's one table from the codes of kv.
func asAPIError(err error) *apiError {
	var e *apiError
	if errors.As(err, &e) {
		return e
	}
	var p *cfkv.Problem
	if errors.As(err, &p) {
		return refuse(p.Status, kindCodes[p.Kind], p.Text)
	}
	k := api.AsError(err)
	e = &apiError{status: http.StatusBadRequest, code: codeBadParameter, text: k.Message, cause: k}
	switch k.Code {
	case kv.CodeKeyNotFound:
		return keyNotFound()
	case kv.CodeNamespaceNotFound:
		e.status, e.code, e.text = http.StatusNotFound, codeNoNamespace, "namespace not found"
	case kv.CodeNamespaceExists:
		e.code, e.text, e.bare = codeNamespaceExists, "a namespace with this account ID and title already exists", true
	case kv.CodeInvalidCursor:
		e.text = cfkv.BadCursor().Text
	case kv.CodeInvalidMetadata:
		e.code, e.text, e.bare = codeBadMetadata, "metadata must be valid json", true
	case kv.CodeInvalidBody, kv.CodeInvalidTitle:
		e.code = codeBadBody
	case kv.CodeValueTooLarge, kv.CodeTooLarge:
		e.status = http.StatusRequestEntityTooLarge
	case kv.CodeTooManyRequests:
		e.status, e.code, e.bare = http.StatusTooManyRequests, codeThrottled, true
		e.text = "Please wait and consider throttling your request speed"
	case kv.CodeNoLeader, kv.CodeNoQuorum, kv.CodeStaleBeyondLimit, kv.CodeOverloaded, kv.CodeOutcomeUnknown, kv.CodeUnavailable,
		kv.CodeNotLeader, kv.CodeEpochChanged:
		e.status, e.code, e.text = http.StatusServiceUnavailable, codeUnavailable, string(k.Code)+": "+k.Message
	case kv.CodeDiskFull:
		e.status, e.code, e.text = http.StatusInsufficientStorage, codeUnavailable, string(k.Code)+": "+k.Message
	case kv.CodeDeadlineExceeded:
		e.status, e.code, e.text = http.StatusGatewayTimeout, codeUnavailable, string(k.Code)+": "+k.Message
	case kv.CodeInternal, kv.CodeUnsupportedByPeer:
		return internal(err)
	}
	return e
}

// internal is all that a client learns of an error without a code: its text is for the log.
func internal(err error) *apiError {
	text := "the node met an error of its own; its log says more"
	return &apiError{
		status: http.StatusInternalServerError, code: codeInternal, text: text,
		cause: kv.Errorf(kv.CodeInternal, "%v", err),
	}
}

// answerError answers err, of which nothing has been answered yet.
func answerError(w http.ResponseWriter, r *http.Request, err error) {
	e := asAPIError(err)
	h := w.Header()
	if e.allow != "" {
		h.Set("Allow", e.allow)
	}
	if e.cause.Code != kv.CodeUnauthorized {
		drain(w, r)
	}
	switch e.cause.Code {
	case kv.CodeOutcomeUnknown:
		// The SDKs send a request again after any 5xx. A write whose outcome is unknown must be looked at first.
		h.Set("X-Should-Retry", "false")
	default:
		if e.status == http.StatusServiceUnavailable || e.status == http.StatusTooManyRequests || e.status == http.StatusInsufficientStorage {
			wait := max(e.cause.RetryAfter, time.Second)
			h.Set("Retry-After", strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10))
		}
	}
	m := message{Code: e.code, Message: e.text}
	if e.pointer != "" {
		m.Source = &source{Pointer: e.pointer}
	}
	answer(w, r, e.status, envelope{Errors: []message{m}})
}

// drain reads what is left of a refused body, up to a limit.
func drain(w http.ResponseWriter, r *http.Request) {
	if r.Body == nil || r.Body == http.NoBody || r.Header.Get("Expect") != "" {
		return
	}
	if _, err := io.CopyN(io.Discard, r.Body, maxDrain); err != io.EOF && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}
