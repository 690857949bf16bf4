package cfbind

import (
	"net/url"
	"strings"

	"kvmesh/node/cfkv"
)

// query are the parameters of a request, form-encoded. As in Workers KV, one that is not known is passed over, of one that
// is given twice the first counts, and an escape that is none stands for itself.
type query []parameter

type parameter struct{ name, value string }

func (q query) get(name string) (value string, given bool) {
	for _, p := range q {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

func parseQuery(raw string) (q query) {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		name, value, _ := strings.Cut(pair, "=")
		q = append(q, parameter{unescape(name), unescape(value)})
	}
	return q
}

func unescape(s string) string {
	if plain, err := url.QueryUnescape(s); err == nil {
		return plain
	}
	return strings.ReplaceAll(s, "+", " ")
}

// number is a parameter as JavaScript's parseInt reads it: a whole number at its beginning counts, and what follows does
// not ("60abc" is 60). Of what is no number all of it is returned, for the message, and "" only when it is not given.
func (q query) number(name string) string {
	text, given := q.get(name)
	if !given {
		return ""
	}
	s := strings.TrimLeft(text, " \t\n\v\f\r")
	end := 0
	if strings.HasPrefix(s, "-") {
		end = 1
	}
	s = strings.TrimPrefix(s, "+")
	digits := len(s[end:]) - len(strings.TrimLeft(s[end:], "0123456789"))
	switch {
	case digits > 0:
		return s[:end+digits]
	case text == "":
		return "NaN"
	}
	return text
}

// prefix is what the keys of a listing begin with.
func (q query) prefix() (string, error) {
	prefix, _ := q.get("prefix")
	return prefix, refuse(cfkv.CheckPrefix(prefix))
}
