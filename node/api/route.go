package api

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"kvmesh/raftstore/kv"
)

// routeOther labels requests that match no route.
const routeOther = "other"

// RouteGet and RouteHead are the names of the reads of one value.
const (
	RouteGet  = "kv_get"
	RouteHead = "kv_head"
)

// resource is one shape of path and what may be done with it.
type resource struct {
	// pattern is a literal path, then at most a {namespace}, then at most a {key...}. A name ends at the next raw slash,
	// one with dots takes the rest of the path with every slash in it.
	pattern string
	methods map[string]endpoint
}

// endpoint is one call.
type endpoint struct {
	name   string   // the label in metrics and logs
	params []string // the query parameters it knows; every other one is refused
	run    func(*surface, *call) error
}

// routes is the whole surface. The first pattern that matches decides.
func routes() []resource {
	all := []resource{
		{"/v1/kv/{namespace}/{key...}", map[string]endpoint{
			http.MethodGet:    {RouteGet, []string{paramCacheTTL, paramConsistency}, (*surface).getValue},
			http.MethodHead:   {RouteHead, []string{paramCacheTTL, paramConsistency}, (*surface).getValue},
			http.MethodPut:    {"kv_put", []string{paramExpiration, paramExpirationTTL}, (*surface).putValue},
			http.MethodDelete: {"kv_delete", nil, (*surface).deleteValue},
		}},
		{"/v1/kv/{namespace}", map[string]endpoint{
			http.MethodGet: {
				"kv_list",
				[]string{paramPrefix, paramLimit, paramCursor, paramValues, paramDelimiter, paramConsistency},
				(*surface).listKeys,
			},
			http.MethodPost: {"kv_bulk", []string{paramCacheTTL, paramConsistency}, (*surface).bulk},
		}},
		{"/v1/txn", map[string]endpoint{
			http.MethodPost: {"txn", nil, (*surface).txn},
		}},
		{"/v1/namespaces/{namespace...}", map[string]endpoint{
			http.MethodGet:    {"namespace_get", nil, (*surface).getNamespace},
			http.MethodPut:    {"namespace_put", nil, (*surface).putNamespace},
			http.MethodDelete: {"namespace_delete", nil, (*surface).deleteNamespace},
		}},
		{"/v1/namespaces", map[string]endpoint{
			http.MethodGet: {"namespace_list", nil, (*surface).listNamespaces},
		}},
		{"/v1/cluster", map[string]endpoint{
			http.MethodGet: {"cluster", nil, (*surface).cluster},
		}},
	}
	all = append(all, clusterRoutes()...)
	all = append(all, backupRoutes()...)
	for _, more := range unsupported.calls {
		i := slices.IndexFunc(all, func(r resource) bool { return r.pattern == more.pattern })
		if i < 0 {
			all = append(all, more)
			continue
		}
		maps.Copy(all[i].methods, more.methods)
	}
	return all
}

// find routes a call and fills in the names in its path. HEAD is answered wherever GET is; the server drops the body.
func (s *surface) find(c *call) (endpoint, error) {
	path := rawPath(c.r.URL)
	for _, res := range s.routes {
		ns, rest, ok := match(res.pattern, path)
		if !ok {
			continue
		}
		ep, ok := res.methods[c.r.Method]
		if !ok && c.r.Method == http.MethodHead {
			ep, ok = res.methods[http.MethodGet]
		}
		if !ok {
			allow := res.allow()
			c.w.Header().Set("Allow", allow)
			return endpoint{}, kv.Errorf(kv.CodeMethodNotAllowed, "%s takes %s", res.pattern, allow)
		}
		var err error
		if c.ns, err = url.PathUnescape(ns); err != nil {
			return endpoint{}, badEscape(kv.CodeInvalidTitle, "namespace", err)
		}
		if c.rest, err = url.PathUnescape(rest); err != nil {
			return endpoint{}, badEscape(kv.CodeInvalidKey, "key", err)
		}
		return ep, nil
	}
	return endpoint{}, kv.Errorf(kv.CodeNotFound,
		"there is no such path; values are at /v1/kv/{namespace}/{key}, namespaces at /v1/namespaces")
}

func badEscape(code kv.Code, field string, err error) error {
	return kv.FieldErrorf(code, field, "%v; after %% come two hex digits, and %%25 is a percent sign", err)
}

// allow is the value of the Allow header.
func (res resource) allow() string {
	var methods []string
	for m := range res.methods {
		methods = append(methods, m)
		if m == http.MethodGet && res.methods[http.MethodHead].run == nil {
			methods = append(methods, http.MethodHead)
		}
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}

// rawPath is the path as the client sent it. URL.EscapedPath is not always that: when it meets a byte that it would
// have escaped itself (a raw `ü` or `"`), it escapes the decoded path anew, and a `%2F` comes back as a separator.
// RawPath is set exactly when the path as sent differs from that default escaping.
func rawPath(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.EscapedPath()
}

// match compares an escaped path with a pattern and returns the escaped names in it.
func match(pattern, path string) (ns, rest string, ok bool) {
	prefix, vars, hasVars := strings.Cut(pattern, "{")
	path, ok = strings.CutPrefix(path, prefix)
	switch {
	case !ok:
		return "", "", false
	case !hasVars:
		return "", "", path == ""
	case vars == "namespace...}":
		return path, "", true
	}
	ns, rest, slash := strings.Cut(path, "/")
	return ns, rest, slash == strings.HasSuffix(vars, "/{key...}")
}
