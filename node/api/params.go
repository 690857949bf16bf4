package api

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// The query parameters.
const (
	paramExpiration    = "expiration"     // unix seconds
	paramExpirationTTL = "expiration_ttl" // seconds
	paramCacheTTL      = "cache_ttl"      // seconds
	paramConsistency   = "consistency"
	paramPrefix        = "prefix"
	paramDelimiter     = "delimiter"
	paramLimit         = "limit"
	paramCursor        = "cursor"
	paramValues        = "values"
)

// The request headers by which a read demands more than the default.
const (
	headerBookmark     = "Kv-Bookmark"
	headerMaxStaleness = "Kv-Max-Staleness"
)

const (
	// defaultCacheTTL is how old a cached answer may be when the request does not say.
	defaultCacheTTL = 60 * time.Second
	// maxCacheTTL is what every larger cache_ttl is taken as: a century, which no cached entry reaches.
	maxCacheTTL = 100 * 365 * 24 * time.Hour
	// maxExpiration is the last expiration that is taken, the end of the year 9999: later ones overflow what clients
	// make of a time.
	maxExpiration = 253402300799
	// maxShown bounds how much of a client's text an error message repeats, in bytes.
	maxShown = 64
)

// params are the query parameters of a call, each once, decoded.
type params []param

type param struct{ name, value string }

func (q params) get(name string) (string, bool) {
	for _, p := range q {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

// parseQuery decodes a raw query string. A parameter that known does not name is refused, so that a typing error in
// expiration_ttl does not make a key live for ever; so is one that is given twice.
func parseQuery(raw string, known []string) (params, error) {
	var q params
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		rawName, rawValue, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(rawName)
		if err != nil {
			return nil, badEscape(kv.CodeInvalidParameter, shown(rawName), err)
		}
		if !slices.Contains(known, name) {
			return nil, kv.FieldErrorf(kv.CodeInvalidParameter, shown(name), "%s", unknownParameter(name, known))
		}
		value, err := url.QueryUnescape(rawValue)
		if err != nil {
			return nil, badEscape(kv.CodeInvalidParameter, name, err)
		}
		if _, twice := q.get(name); twice {
			return nil, kv.FieldErrorf(kv.CodeInvalidParameter, name, "the parameter %s is given twice; give it once", name)
		}
		q = append(q, param{name, value})
	}
	return q, nil
}

func unknownParameter(name string, known []string) string {
	text := "this call has no parameter " + strconv.Quote(shown(name))
	if len(known) == 0 {
		return text + "; it takes none"
	}
	return text + "; it takes " + strings.Join(known, ", ")
}

// shown cuts a client's text to what an error may repeat, at a rune's end.
func shown(s string) string {
	if len(s) <= maxShown {
		return s
	}
	n := maxShown
	for n > maxShown-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// natural reads a decimal number without a sign. Numbers beyond int64 become the largest one.
func natural(s string) (int64, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		n = 1<<63 - 1 // all digits, so it is out of range
	}
	return n, true
}

// cacheTTL is the age up to which a cached answer will do.
func (q params) cacheTTL() (time.Duration, error) {
	s, ok := q.get(paramCacheTTL)
	if !ok {
		return defaultCacheTTL, nil
	}
	n, ok := natural(s)
	if !ok {
		return 0, kv.FieldErrorf(kv.CodeInvalidParameter, paramCacheTTL,
			"cache_ttl=%s is not a whole number of seconds, 0 or more", shown(s))
	}
	return time.Duration(min(n, int64(maxCacheTTL/time.Second))) * time.Second, nil
}

// consistency is what the call demands beyond a default read. Every call may carry the two headers, so that a client can
// send its bookmark along with everything; writes are always new enough, but what is malformed is refused everywhere.
func (c *call) consistency() (k Consistency, err error) {
	if s, ok := c.q.get(paramConsistency); ok {
		if s != "strong" {
			return k, kv.FieldErrorf(kv.CodeInvalidParameter, paramConsistency,
				"consistency=%s is unknown; the only value is strong, and without it reads are as fresh as their age says", shown(s))
		}
		k.Strong = true
	}
	demands, err := Demands(c.r)
	demands.Strong = k.Strong
	return demands, err
}

// Demands is what a request's headers demand of a read: Kv-Bookmark and Kv-Max-Staleness, of any surface.
func Demands(r *http.Request) (k Consistency, err error) {
	text, err := header(r, headerBookmark, kv.CodeInvalidParameter)
	if err != nil {
		return k, err
	}
	if text != "" {
		if k.Bookmark, err = kv.ParseBookmark(text); err != nil {
			return k, kv.FieldErrorf(kv.CodeInvalidParameter, headerBookmark,
				"the bookmark %s is not one of this mesh (%v); send one back as an answer gave it", strconv.Quote(shown(text)), err)
		}
	}
	if text, err = header(r, headerMaxStaleness, kv.CodeInvalidParameter); err != nil || text == "" {
		return k, err
	}
	ms, ok := natural(text)
	if !ok {
		return k, kv.FieldErrorf(kv.CodeInvalidParameter, headerMaxStaleness,
			"%s: %s is not a whole number of milliseconds, 0 or more", headerMaxStaleness, shown(text))
	}
	k.MaxStaleness, k.Bounded = time.Duration(min(ms, int64(maxCacheTTL/time.Millisecond)))*time.Millisecond, true
	return k, nil
}

// expiry is the unix second of mesh time at which a value expires, 0 = never. expiration_ttl wins over expiration. A
// lifetime is counted from the next whole second, so that a value lives at least as long as was asked for.
func (q params) expiry(now time.Time) (int64, error) {
	var at int64
	if s, ok := q.get(paramExpiration); ok {
		n, ok := natural(s)
		if !ok || n > maxExpiration {
			return 0, kv.FieldErrorf(kv.CodeInvalidExpiration, paramExpiration,
				"expiration=%s is not a time in whole seconds since 1970, at most %d", shown(s), maxExpiration)
		}
		at = n
	}
	if s, ok := q.get(paramExpirationTTL); ok {
		n, ok := natural(s)
		from := now.Add(time.Second - 1).Unix()
		if !ok || n < 1 || n > maxExpiration-from {
			return 0, kv.FieldErrorf(kv.CodeInvalidExpiration, paramExpirationTTL,
				"expiration_ttl=%s is not a lifetime in whole seconds, 1 or more, that ends before the year 10000", shown(s))
		}
		return from + n, nil
	}
	if _, ok := q.get(paramExpiration); ok && at <= now.Unix() {
		return 0, kv.FieldErrorf(kv.CodeInvalidExpiration, paramExpiration,
			"expiration=%d is not in the future; mesh time is %d", at, now.Unix())
	}
	return at, nil
}

// text is a parameter that is part of keys: UTF-8, and not longer than a key.
func (q params) text(name string) (string, error) {
	s, _ := q.get(name)
	switch {
	case len(s) > kv.MaxKeyBytes:
		return "", kv.FieldErrorf(kv.CodeInvalidParameter, name, "the %s has %d bytes; no key has more than %d",
			name, len(s), kv.MaxKeyBytes)
	case !utf8.ValidString(s):
		return "", kv.FieldErrorf(kv.CodeInvalidParameter, name, "the %s is not valid UTF-8, as every key is", name)
	}
	return s, nil
}

// header returns the only value of a request header, "" when there is none.
func header(r *http.Request, name string, code kv.Code) (string, error) {
	values := r.Header.Values(name)
	switch len(values) {
	case 0:
		return "", nil
	case 1:
		return values[0], nil
	}
	return "", kv.FieldErrorf(code, name, "the header %s is given %d times; give it once", name, len(values))
}

// metadata is the compact JSON in Kv-Metadata, nil when there is none.
func metadata(r *http.Request) ([]byte, error) {
	text, err := header(r, "Kv-Metadata", kv.CodeInvalidMetadata)
	if err != nil {
		return nil, err
	}
	compact, err := kv.CompactMetadata([]byte(text))
	if err != nil {
		e := *asError(err)
		e.Field = "Kv-Metadata"
		return nil, &e
	}
	return compact, nil
}
