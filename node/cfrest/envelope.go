package cfrest

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
)

// envelope is every answer but a value. Its first four members are always there.
type envelope struct {
	Success  bool      `json:"success"`
	Errors   []message `json:"errors"`
	Messages []message `json:"messages"`
	Result   any       `json:"result"` // nil = null
	Info     any       `json:"result_info,omitempty"`
}

type message struct {
	Code    int     `json:"code"`
	Message string  `json:"message"`
	Source  *source `json:"source,omitempty"`
}

type source struct {
	Pointer string `json:"pointer"`
}

// pageInfo is the result_info of what is paged by number.
type pageInfo struct {
	Page       int64 `json:"page"`
	PerPage    int64 `json:"per_page"`
	Count      int   `json:"count"`
	TotalCount int   `json:"total_count"`
	TotalPages int64 `json:"total_pages"`
}

// ok answers with a result; nil is null.
func (c *call) ok(result, info any) error {
	answer(c.w, c.r, http.StatusOK, envelope{Success: true, Result: result, Info: info})
	return nil
}

// answer writes an envelope, which is built whole before the header goes out.
func answer(w http.ResponseWriter, r *http.Request, status int, e envelope) {
	if e.Errors == nil {
		e.Errors = []message{}
	}
	if e.Messages == nil {
		e.Messages = []message{}
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		// What is shown are structs of this package, and metadata that was checked when it was stored.
		status = http.StatusInternalServerError
		b.Reset()
		b.WriteString(`{"success":false,"errors":[{"code":10500,"message":"the answer cannot be written as JSON"}],"messages":[],"result":null}` + "\n")
	}
	jsonHeader(w.Header())
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(b.Bytes()) // an error means that the client has gone; there is nobody left to tell
	}
}

func jsonHeader(h http.Header) {
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
}
