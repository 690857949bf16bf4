package hitpath

import (
	"bytes"
	"encoding/binary"
)

// verdict is what the bytes of a connection are so far.
type verdict uint8

const (
	more     verdict = iota // the beginning of a head that may be ours
	whole                   // a complete head that is ours
	doubtful                // net/http's business
)

// span is a part of the bytes that a head was parsed from.
type span struct{ at, end int }

func (s span) of(buf []byte) []byte { return buf[s.at:s.end] }

// head is one request's head, parsed a line at a time as the lines come: net/http answers a bad line without waiting for the
// next one, so it has to get it at once. It is stricter than net/http, never laxer.
type head struct {
	next    int  // where the first line begins that has not been looked at
	started bool // the request line has been
	isHEAD  bool // else it is GET
	cold    bool // a header says something that only the handlers understand
	hosts   int
	auths   int
	spaces  int
	target  span
	auth    span // of Authorization, when auths is 1
	space   span // of Kv-Namespace, when spaces is 1
}

// parse goes on parsing the head that buf begins with. buf holds what the calls before have seen, and perhaps more.
func (h *head) parse(buf []byte) verdict {
	for {
		n := bytes.IndexByte(buf[h.next:], '\n')
		if n < 0 {
			return more
		}
		at := h.next
		if mutBareLF {
			if n = bytes.Index(buf[at:], []byte("\r\n")) + 1; n == 0 {
				return more
			}
		}
		line := buf[at : at+n]
		h.next += n + 1
		if n == 0 || line[n-1] != '\r' {
			return doubtful
		}
		line = line[:n-1]
		switch {
		case !h.started:
			if !h.requestLine(line, at) {
				return doubtful
			}
			h.started = true
		case len(line) == 0:
			if h.hosts != 1 && !(mutTwoHosts && h.hosts > 1) {
				return doubtful
			}
			return whole
		case !h.field(line, at):
			return doubtful
		}
	}
}

// requestLine reads "GET /path HTTP/1.1".
func (h *head) requestLine(line []byte, at int) bool {
	const version = " HTTP/1.1"
	method := 0
	switch {
	case bytes.HasPrefix(line, []byte("GET /")):
		method = len("GET ")
	case bytes.HasPrefix(line, []byte("HEAD /")):
		method, h.isHEAD = len("HEAD "), true
	default:
		return false
	}
	end := len(line) - len(version)
	if end <= method || string(line[end:]) != version {
		return false
	}
	for _, b := range line[method:end] {
		if !inTarget[b] {
			return false
		}
	}
	h.target = span{at + method, at + end}
	return true
}

// field reads one header line.
func (h *head) field(line []byte, at int) bool {
	if mutFolded && (line[0] == ' ' || line[0] == '\t') {
		return true
	}
	colon := bytes.IndexByte(line, ':')
	name := line[:max(colon, 0)]
	if mutSpaceColon {
		name = bytes.TrimRight(name, " \t")
	}
	if len(name) == 0 || len(name) > maxName {
		return false
	}
	var folded [maxName]byte
	for i, b := range name {
		if folded[i] = lower[b]; folded[i] == 0 {
			return false
		}
	}
	start, end := colon+1, len(line)
	for start < end && (line[start] == ' ' || line[start] == '\t') {
		start++
	}
	for end > start && (line[end-1] == ' ' || line[end-1] == '\t') {
		end--
	}
	return plain(line[start:end]) && h.know(folded[:len(name)], line[start:end], span{at + start, at + end})
}

// know takes a header by its name in lower case. Of those that are not known here, nobody can say what they would do.
func (h *head) know(name, value []byte, where span) bool {
	switch string(name) {
	case "accept", "accept-charset", "accept-encoding", "accept-language", "baggage", "cache-control", "cdn-loop",
		"content-type", "cookie", "dnt", "forwarded", "from", "origin", "pragma", "priority", "referer", "save-data",
		"traceparent", "tracestate", "upgrade-insecure-requests", "user-agent", "via":
		return true // the answer to a read of one value does not depend on it
	case "host":
		h.hosts++
		return isHost(value)
	case "authorization":
		h.auths++
		h.auth = where
		return true
	case "kv-namespace":
		h.spaces++
		h.space = where
		return true
	case "connection": // what HTTP/1.1 does by itself
		return bytes.EqualFold(value, []byte("keep-alive"))
	case "content-length":
		return mutContentLength
	}
	switch {
	case bytes.HasPrefix(name, []byte("kv-")), bytes.HasPrefix(name, []byte("x-auth-")):
		h.cold = true
		return true
	case bytes.HasPrefix(name, []byte("x-")), bytes.HasPrefix(name, []byte("sec-")), bytes.HasPrefix(name, []byte("cf-")):
		return true // of proxies, browsers and Workers
	}
	return false
}

// maxName is the longest name of a header that is looked at.
const maxName = 48

// isHost reports whether a Host header names a host, in characters of which nobody can be in doubt.
func isHost(value []byte) bool {
	for _, b := range value {
		switch {
		case lower[b] >= 'a' && lower[b] <= 'z', b >= '0' && b <= '9':
		case b == '.', b == '-', b == '_', b == ':', b == '[', b == ']':
		default:
			return false
		}
	}
	return len(value) > 0
}

// plain reports whether a value has printable ASCII and tabs only, eight bytes at a time.
func plain(b []byte) bool {
	const ones = 0x0101010101010101
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		// High bits of the bytes that are below ' ', that are DEL, or that are not ASCII; a tab is looked at below.
		bad := (x - ' '*ones) | ((x ^ 0x7f*ones) - ones) | x
		if bad&(0x80*ones) != 0 && !plainBytes(b[:8]) {
			return false
		}
		b = b[8:]
	}
	return plainBytes(b)
}

func plainBytes(b []byte) bool {
	for _, c := range b {
		if (c < ' ' && c != '\t' && !(mutBareLF && c == '\n')) || c > '~' {
			return false
		}
	}
	return true
}

// lower is the lower case of the bytes that the name of a header may have (RFC 9110, 5.6.2), 0 for all others. inTarget are
// the bytes that the target of a request may have here: what RFC 3986 allows, and what workerd leaves as it is.
var lower, inTarget = tables()

func tables() (lower [256]byte, inTarget [256]bool) {
	for b := byte('0'); b <= '9'; b++ {
		lower[b], inTarget[b] = b, true
	}
	for b := byte('a'); b <= 'z'; b++ {
		lower[b], lower[b-'a'+'A'] = b, b
		inTarget[b], inTarget[b-'a'+'A'] = true, true
	}
	for _, b := range []byte("!#$%&'*+-.^_`|~") {
		lower[b] = b
	}
	for _, b := range []byte("-._~!$&'()*+,;=:@/%?[]^|") {
		inTarget[b] = true
	}
	return lower, inTarget
}
