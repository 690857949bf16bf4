package api

import (
	"encoding/hex"
	"math"
	"net/http"
	"strconv"
	"strings"

	"kvmesh/raftstore/kv"
)

// etag is the entity tag of a key's state: the last 8 hex digits of the epoch and the revision, in quotes. It is
// strong: a revision is never re-used within an epoch.
func etag(epoch kv.Epoch, rev kv.Revision) string {
	return `"` + epoch.Tag() + "-" + strconv.FormatUint(uint64(rev), 10) + `"`
}

// tags is a parsed If-Match or If-None-Match (RFC 9110, 13.1).
type tags struct {
	given bool
	any   bool // *
	list  []tag
}

// tag is one entity tag, with its quotes.
type tag struct {
	weak  bool
	value string
}

// parseTags reads a header that holds `*` or a list of entity tags; several lines count as one list. What is neither is
// refused: to pass over a condition would be to carry out what the client has forbidden.
func parseTags(r *http.Request, name string) (tags, error) {
	lines := r.Header.Values(name)
	if len(lines) == 0 {
		return tags{}, nil
	}
	t := tags{given: true}
	rest := strings.Trim(strings.Join(lines, ","), " \t")
	if rest == "*" {
		t.any = true
		return t, nil
	}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		one, after, ok := cutTag(rest)
		if after = strings.TrimLeft(after, " \t"); !ok || (after != "" && after[0] != ',') {
			return tags{}, badTags(name)
		}
		t.list = append(t.list, one)
		rest = after
	}
	if len(t.list) == 0 {
		return tags{}, badTags(name)
	}
	return t, nil
}

func badTags(name string) error {
	return kv.FieldErrorf(kv.CodeInvalidParameter, name,
		"the header %s is neither * nor a list of entity tags in double quotes, as the header ETag shows them", name)
}

// cutTag splits one entity tag off the front of s.
func cutTag(s string) (t tag, after string, ok bool) {
	s, t.weak = strings.CutPrefix(s, "W/")
	if s == "" || s[0] != '"' {
		return t, "", false
	}
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			t.value = s[:i+1]
			return t, s[i+1:], true
		case c <= ' ' || c == 0x7f:
			return t, "", false
		}
	}
	return t, "", false
}

// has reports whether the state with the given tag is among t. Weak tags count only where weak comparison is asked for.
func (t tags) has(current string, weakComparison bool) bool {
	if t.any {
		return true
	}
	for _, one := range t.list {
		if one.value == current && (weakComparison || !one.weak) {
			return true
		}
	}
	return false
}

// writeCond reads the condition of a write. A write can demand one state, no state or any state; a demand that cannot
// be put into a Cond is refused.
func writeCond(r *http.Request) (Cond, error) {
	ifMatch, err := parseTags(r, "If-Match")
	if err != nil {
		return Cond{}, err
	}
	ifNone, err := parseTags(r, "If-None-Match")
	if err != nil {
		return Cond{}, err
	}
	switch {
	case ifMatch.given && ifNone.given:
		return Cond{}, kv.FieldErrorf(kv.CodeInvalidParameter, "If-Match",
			"a write takes If-Match or If-None-Match, not both")
	case ifNone.any:
		return Cond{Kind: CondAbsent}, nil
	case ifNone.given:
		return Cond{}, kv.FieldErrorf(kv.CodeInvalidParameter, "If-None-Match",
			"a write takes only `If-None-Match: *`; to replace a state that you know, send its ETag as If-Match")
	case ifMatch.any:
		return Cond{Kind: CondPresent}, nil
	case len(ifMatch.list) > 1:
		return Cond{}, kv.FieldErrorf(kv.CodeInvalidParameter, "If-Match",
			"a write takes one entity tag in If-Match; it has %d", len(ifMatch.list))
	case ifMatch.given:
		return tagCond(ifMatch.list[0]), nil
	}
	return Cond{}, nil
}

// tagCond is the condition that the key is in the state that t names. A tag that names no state of ours (a weak one,
// by the strong comparison that If-Match demands, or another server's) becomes a revision that no key ever has, so
// that the store refuses it like every other tag, with the key's present revision.
func tagCond(t tag) Cond {
	cond := Cond{Kind: CondETag, Revision: math.MaxUint64}
	epochTag, revision, ok := strings.Cut(strings.Trim(t.value, `"`), "-")
	if t.weak || !ok || len(epochTag) != 2*len(cond.EpochTag) {
		return cond
	}
	raw, err := hex.DecodeString(epochTag)
	if err != nil {
		return cond
	}
	n, err := strconv.ParseUint(revision, 10, 64)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != revision || strings.ToLower(epochTag) != epochTag {
		return cond
	}
	cond.EpochTag, cond.Revision = [4]byte(raw), kv.Revision(n)
	return cond
}
