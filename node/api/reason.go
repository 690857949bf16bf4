package api

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"unicode"
)

// maxReasonBytes bounds a reason phrase: clients read a status line into a small buffer.
const maxReasonBytes = 512

// SetReason gives the answer to r a reason phrase of its own, instead of the standard text of its status. It is for
// protocols whose clients read nothing but the status line of an error; net/http cannot write one. Call it before
// WriteHeader with the same status; an answer with another status keeps the standard text. What a status line cannot
// hold (line breaks, control characters) becomes a space, and a text above 512 bytes is cut.
//
// The line is rewritten by the connection, as net/http sends it: its buffer is empty when an answer begins, so the first
// write of an answer begins with its status line, and everything else about the connection (keep-alive, the rest of a body,
// a client that waits for 100) stays net/http's. It works for connections of LimitListener over HTTP/1; HTTP/2 has no
// reason phrases, and without such a connection (a recorder in a test) nothing happens.
func SetReason(r *http.Request, status int, text string) {
	if lc, ok := r.Context().Value(connKey{}).(*limitedConn); ok && r.ProtoMajor == 1 {
		lc.phrase.Store(&phrase{strconv.Itoa(status), reasonText(text)})
	}
}

// reasonText is text as a status line can hold it (RFC 9112, section 4): printable, and valid UTF-8 beyond ASCII.
func reasonText(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r // bytes that are no UTF-8 come as U+FFFD
	}, text)
	if len(text) <= maxReasonBytes {
		return text
	}
	const more = "…"
	return strings.ToValidUTF8(text[:maxReasonBytes-len(more)], "") + more
}

// phrase is the reason phrase of one answer.
type phrase struct{ status, text string }

// in returns p with the phrase in its status line, when p begins with one of the phrase's status.
func (ph *phrase) in(p []byte) ([]byte, bool) {
	const version = "HTTP/1.1"
	if len(p) < len(version) || string(p[:len(version)-1]) != version[:len(version)-1] {
		return nil, false
	}
	rest, ok := bytes.CutPrefix(p[len(version):], []byte(" "+ph.status+" "))
	if !ok {
		return nil, false
	}
	end := bytes.Index(rest, []byte("\r\n"))
	if end < 0 {
		return nil, false
	}
	told := make([]byte, 0, len(p)-end+len(ph.text))
	told = append(told, p[:len(p)-len(rest)]...)
	told = append(told, ph.text...)
	return append(told, rest[end:]...), true
}
