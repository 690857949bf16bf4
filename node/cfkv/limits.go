package cfkv

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// The limits of Workers KV beyond those of kv, which are the same (keys, values, metadata, pages of a listing).
const (
	// MinTTL is the shortest lifetime, and the nearest expiration, in seconds.
	MinTTL = 60
	// MinCacheTTL is the least cache_ttl, in seconds; DefaultCacheTTL holds where a read does not say.
	MinCacheTTL     = 30
	DefaultCacheTTL = 60 * time.Second
	// MaxBulkItems and MaxBulkBytes bound one bulk put or delete of the REST API.
	MaxBulkItems = 10_000
	MaxBulkBytes = 100_000_000
	// MaxBulkGetKeys and MaxBulkGetBytes bound one bulk get: keys asked for, and bytes of the values found.
	MaxBulkGetKeys  = 100
	MaxBulkGetBytes = 25 << 20

	// maxExpiration is the last expiration that is taken, the end of the year 9999, as on the native surface.
	maxExpiration = 253402300799
	// maxShown bounds how much of a client's text a Problem repeats, in bytes.
	maxShown = 64
)

// Kind groups problems by what is wrong, so that a surface can give each its code.
type Kind uint8

// The kinds.
const (
	KindKey Kind = iota + 1
	KindTTL
	KindExpiration
	KindCacheTTL
	KindMetadata
	KindValue
	KindList
	KindBulkGet
	KindTooLarge // of a bulk call as a whole
)

// Problem is why Workers KV refuses a request.
type Problem struct {
	Kind   Kind
	Status int    // of HTTP
	Text   string // one line, without control characters
}

func (p *Problem) Error() string { return p.Text }

func problem(kind Kind, status int, format string, args ...any) *Problem {
	return &Problem{kind, status, fmt.Sprintf(format, args...)}
}

// CheckKey checks a decoded key; nil when it is good.
func CheckKey(key string) *Problem {
	switch {
	case key == "":
		return problem(KindKey, http.StatusBadRequest, "Key names must not be empty")
	case key == "." || key == "..":
		return problem(KindKey, http.StatusBadRequest, "Illegal key name %q. Please use a different name.", key)
	}
	return CheckPrefix(key)
}

// CheckPrefix checks a decoded prefix of keys, which may be empty; nil when it is good.
func CheckPrefix(prefix string) *Problem {
	switch {
	case len(prefix) > kv.MaxKeyBytes:
		return KeyTooLong(int64(len(prefix)))
	case !utf8.ValidString(prefix):
		return BadKeyEncoding()
	}
	return nil
}

// KeyTooLong is the problem of a key of n bytes.
func KeyTooLong(n int64) *Problem {
	return problem(KindKey, http.StatusRequestURITooLong, "UTF-8 encoded length of %d exceeds key length limit of %d.", n, kv.MaxKeyBytes)
}

// BadKeyEncoding is the problem of a name that percent-decodes to no UTF-8, or not at all.
func BadKeyEncoding() *Problem {
	return problem(KindKey, http.StatusBadRequest, "Could not URL-decode key name")
}

// Expiry works out when a value expires, in unix seconds of mesh time, 0 = never. ttl and expiration are numbers as text,
// "" where none was given; ttl wins, and expiration is not even looked at then. Numbers may have a fraction of zeros
// (`60.0`, as some encoders write whole numbers).
func Expiry(ttl, expiration string, now time.Time) (int64, *Problem) {
	switch {
	case ttl != "":
		n, ok := whole(ttl)
		switch {
		case !ok || n <= 0:
			return 0, problem(KindTTL, http.StatusBadRequest,
				"Invalid expiration_ttl of %s. Please specify integer greater than 0.", Shown(ttl))
		case n < MinTTL:
			return 0, problem(KindTTL, http.StatusBadRequest,
				"Invalid expiration_ttl of %s. Expiration TTL must be at least %d.", Shown(ttl), MinTTL)
		}
		return min(n, maxExpiration-now.Unix()) + now.Unix(), nil
	case expiration != "":
		n, ok := whole(expiration)
		switch {
		case !ok || n <= now.Unix():
			return 0, problem(KindExpiration, http.StatusBadRequest,
				"Invalid expiration of %s. Please specify integer greater than the current number of seconds since the UNIX epoch.",
				Shown(expiration))
		case n < now.Unix()+MinTTL:
			return 0, problem(KindExpiration, http.StatusBadRequest,
				"Invalid expiration of %s. Expiration times must be at least %d seconds in the future.", Shown(expiration), MinTTL)
		}
		return min(n, maxExpiration), nil
	}
	return 0, nil
}

// CacheTTL is the age up to which a cached answer will do; "" is the default.
func CacheTTL(text string) (time.Duration, *Problem) {
	if text == "" {
		return DefaultCacheTTL, nil
	}
	n, ok := whole(text)
	if !ok || n < MinCacheTTL {
		return 0, problem(KindCacheTTL, http.StatusBadRequest,
			"Invalid cache_ttl of %s. Cache TTL must be at least %d.", Shown(text), MinCacheTTL)
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second, nil
}

// ListLimit is the size of a page; "" is the largest.
func ListLimit(text string) (int, *Problem) {
	if text == "" {
		return kv.MaxListLimit, nil
	}
	n, ok := whole(text)
	switch {
	case !ok || n < 1:
		return 0, problem(KindList, http.StatusBadRequest,
			"Invalid key_count_limit of %s. Please specify an integer greater than 0.", Shown(text))
	case n > kv.MaxListLimit:
		return 0, problem(KindList, http.StatusBadRequest,
			"Invalid key_count_limit of %s. Please specify an integer less than %d.", Shown(text), kv.MaxListLimit)
	}
	return int(n), nil
}

// BadCursor is the problem of a cursor that no listing gave, or one of another query.
func BadCursor() *Problem { return problem(KindList, http.StatusBadRequest, "Invalid cursor") }

// MetadataTooLarge is the problem of n bytes of metadata.
func MetadataTooLarge(n int64) *Problem {
	return problem(KindMetadata, http.StatusRequestEntityTooLarge, "Metadata length of %d exceeds limit of %d.", n, kv.MaxMetadataBytes)
}

// ValueTooLarge is the problem of a value of n bytes: of what was announced, or of what has come.
func ValueTooLarge(n int64) *Problem {
	return problem(KindValue, http.StatusRequestEntityTooLarge, "Value length of %d exceeds limit of %d.", n, kv.MaxValueBytes)
}

// The problems of a bulk get.
func bulkGet(format string, args ...any) *Problem {
	return problem(KindBulkGet, http.StatusBadRequest, format, args...)
}

// CheckBulkGet checks how many keys a bulk get asks for, and as what; nil when that is good.
func CheckBulkGet(keys int, kind string) *Problem {
	switch {
	case keys > MaxBulkGetKeys:
		return bulkGet("You can request a maximum of %d keys", MaxBulkGetKeys)
	case keys < 1:
		return bulkGet("You must request a minimum of 1 key")
	case kind != "text" && kind != "json":
		return bulkGet("%s is not a valid type. Use \"json\" or \"text\"", strconv.Quote(Shown(kind)))
	}
	return nil
}

// NotOfType is the problem of a bulk get that meets a value that is no text, or no JSON; kind is what was asked for.
func NotOfType(kind string) *Problem {
	return bulkGet("At least one of the requested keys corresponds to a non-%s value", kind)
}

// BulkGetTooLarge is the problem of a bulk get whose values are too large together.
func BulkGetTooLarge() *Problem {
	return problem(KindTooLarge, http.StatusRequestEntityTooLarge, "Total size of request exceeds the limit of 25MB")
}

// whole reads a number without a fraction other than zeros. What is beyond int64 becomes its end.
func whole(text string) (int64, bool) {
	digits, fraction, _ := strings.Cut(text, ".")
	if strings.Trim(fraction, "0") != "" || strings.HasPrefix(digits, "+") {
		return 0, false
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil && strings.Trim(strings.TrimPrefix(digits, "-"), "0123456789") != "" {
		return 0, false
	}
	return n, digits != "" && digits != "-"
}

// Shown cuts a client's text to what a Problem may repeat, and makes it one printable line: the binding tells it in a
// status line.
func Shown(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if len(s) <= maxShown {
		return s
	}
	n := maxShown
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
