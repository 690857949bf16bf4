package hitpath

import (
	"bytes"
	"time"

	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// shape is one of the three forms that a read of one value has.
type shape uint8

const (
	noShape shape = iota
	nativeShape
	restShape
	bindingShape
	numShapes
)

// want is what a request asks for. Its parts point into the connection's memory.
type want struct {
	shape  shape
	isHEAD bool
	// quick is false when the handlers have to look at the request: it may still be answered on this connection.
	quick bool
	ns    []byte // an id or a title; with byID only an id
	byID  bool
	key   []byte
	limit time.Duration // the age up to which a cached answer will do
}

const (
	nativePrefix = "/v1/kv/"
	restPrefix   = "/client/v4/accounts/"
	restMiddle   = "storage/kv/namespaces/"
	restValues   = "values/"
	// maxAccount is the longest account id that the REST surface takes.
	maxAccount = 32
)

// route finds out what the request of a complete head asks for. It reports false for what is no read of one value. scratch
// is room for the key when it is escaped.
func (h *head) route(buf []byte, scratch *[kv.MaxKeyBytes]byte) (w want, ok bool) {
	path, query, hasQuery := bytes.Cut(h.target.of(buf), []byte("?"))
	w.limit = cfkv.DefaultCacheTTL // of every surface
	escapes := bytes.IndexByte(path, '%') >= 0
	if escapes && !validEscapes(path) {
		return w, false
	}
	w.isHEAD, w.quick = h.isHEAD, !h.cold
	decode := escapes
	switch {
	case h.spaces > 0:
		w.shape, w.ns, w.key = bindingShape, h.space.of(buf), path[1:]
		if h.isHEAD || bytes.IndexByte(w.key, '/') >= 0 {
			return w, false
		}
		query, encoded := bytes.CutPrefix(query, []byte("urlencoded=true"))
		if encoded && len(query) > 0 {
			w.age(query, "&cache_ttl=", cfkv.MinCacheTTL)
		}
		w.quick = w.quick && h.spaces == 1 && (encoded || !hasQuery)
		decode = decode && encoded
	case bytes.HasPrefix(path, []byte(nativePrefix)):
		w.shape = nativeShape
		if w.ns, w.key, ok = bytes.Cut(path[len(nativePrefix):], []byte("/")); !ok {
			return w, false
		}
		if hasQuery {
			w.age(query, "cache_ttl=", 0)
		}
	case bytes.HasPrefix(path, []byte(restPrefix)):
		w.shape, w.byID = restShape, true
		w.quick = w.quick && !hasQuery
		if !w.rest(path[len(restPrefix):]) {
			return w, false
		}
	default:
		return w, false
	}
	if len(w.key) == 0 || bytes.IndexByte(w.ns, '%') >= 0 {
		return w, false
	}
	if decode && w.quick {
		w.key, w.quick = unescape(scratch[:0], w.key)
	}
	return w, true
}

// age reads a query that has a limit of age in seconds and nothing else. What is not as simple as that is not quick.
func (w *want) age(query []byte, name string, least int) {
	digits, ok := bytes.CutPrefix(query, []byte(name))
	const most = 9 // digits, so that nothing overflows
	n := 0
	for _, b := range digits {
		n = 10*n + int(b-'0')
		ok = ok && b >= '0' && b <= '9'
	}
	if !ok || len(digits) == 0 || len(digits) > most || n < least {
		w.quick = false
		return
	}
	w.limit = time.Duration(n) * time.Second
}

// rest reads what follows restPrefix: an account, a namespace and a key.
func (w *want) rest(path []byte) (ok bool) {
	var account []byte
	account, path, ok = bytes.Cut(path, []byte("/"))
	if !ok || len(account) == 0 || len(account) > maxAccount || bytes.IndexByte(account, '%') >= 0 {
		return false
	}
	if path, ok = bytes.CutPrefix(path, []byte(restMiddle)); !ok {
		return false
	}
	if w.ns, path, ok = bytes.Cut(path, []byte("/")); !ok {
		return false
	}
	w.key, ok = bytes.CutPrefix(path, []byte(restValues))
	return ok
}

// validEscapes reports whether two hex digits follow every percent sign, which is all that net/http asks of a path.
func validEscapes(path []byte) bool {
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		if i+2 >= len(path) || unhex(path[i+1]) < 0 || unhex(path[i+2]) < 0 {
			return false
		}
		i += 2
	}
	return true
}

// unescape appends the bytes that valid escapes stand for. It reports false when dst has no room for them.
func unescape(dst, s []byte) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		if len(dst) == cap(dst) {
			return nil, false
		}
		b := s[i]
		if b == '%' {
			b = byte(unhex(s[i+1])<<4 | unhex(s[i+2]))
			i += 2
		}
		dst = append(dst, b)
	}
	return dst, true
}

func unhex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case lower[b] >= 'a' && lower[b] <= 'f':
		return int(lower[b]-'a') + 10
	}
	return -1
}
