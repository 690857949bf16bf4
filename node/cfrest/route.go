package cfrest

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// RouteGet is the name of the read of one value.
const RouteGet = "kv_get"

// maxAccount is the longest account id, in characters.
const maxAccount = 32

// endpoint is one call.
type endpoint struct {
	name string // the label in metrics and logs
	op   string // in the texts of errors, as Workers KV names it
	run  func(*surface, *call) error
}

// resource is one shape of path and what may be done with it. In a pattern {account} and {ns} are one segment each, {key}
// is the rest of the path with every raw slash in it: cloudflare-go and unstorage do not escape slashes.
type resource struct {
	pattern string
	methods map[string]endpoint
}

const namespaces = "/accounts/{account}/storage/kv/namespaces"

// routes is the whole surface. The first pattern that matches decides.
func routes() []resource {
	return []resource{
		{namespaces, map[string]endpoint{
			http.MethodGet:  {"namespace_list", "list namespaces", (*surface).listNamespaces},
			http.MethodPost: {"namespace_create", "create namespace", (*surface).createNamespace},
		}},
		{namespaces + "/{ns}", map[string]endpoint{
			http.MethodGet:    {"namespace_get", "get namespace", (*surface).getNamespace},
			http.MethodPut:    {"namespace_rename", "rename namespace", (*surface).renameNamespace},
			http.MethodDelete: {"namespace_delete", "remove namespace", (*surface).deleteNamespace},
		}},
		{namespaces + "/{ns}/keys", map[string]endpoint{
			http.MethodGet: {"kv_list", "list keys", (*surface).listKeys},
		}},
		{namespaces + "/{ns}/values/{key}", map[string]endpoint{
			http.MethodGet:    {RouteGet, "get", (*surface).getValue},
			http.MethodPut:    {"kv_put", "put", (*surface).putValue},
			http.MethodDelete: {"kv_delete", "remove key", (*surface).deleteValue},
		}},
		{namespaces + "/{ns}/metadata/{key}", map[string]endpoint{
			http.MethodGet: {"kv_metadata", "get", (*surface).getMetadata},
		}},
		{namespaces + "/{ns}/bulk", map[string]endpoint{
			http.MethodPut:    {"kv_bulk_put", "bulk put keys", (*surface).bulkPut},
			http.MethodDelete: {"kv_bulk_delete", "bulk remove keys", (*surface).bulkDelete},
		}},
		{namespaces + "/{ns}/bulk/delete", map[string]endpoint{
			http.MethodPost: {"kv_bulk_delete", "bulk remove keys", (*surface).bulkDelete},
		}},
		{namespaces + "/{ns}/bulk/get", map[string]endpoint{
			http.MethodPost: {"kv_bulk_get", "bulk get keys", (*surface).bulkGet},
		}},
		{"/user", map[string]endpoint{http.MethodGet: {"user", "", (*surface).user}}},
		{verifyPath, map[string]endpoint{http.MethodGet: {"token_verify", "", (*surface).verifyToken}}},
		{"/memberships", map[string]endpoint{http.MethodGet: {"memberships", "", (*surface).memberships}}},
		{"/accounts", map[string]endpoint{http.MethodGet: {"accounts", "", (*surface).accounts}}},
		{"/accounts/{account}", map[string]endpoint{http.MethodGet: {"account", "", (*surface).oneAccount}}},
		{"/accounts/{account}/tokens/verify", map[string]endpoint{http.MethodGet: {"token_verify", "", (*surface).verifyToken}}},
	}
}

// subPath is the escaped path below Root.
func subPath(u *url.URL) string { return strings.TrimPrefix(api.RawPath(u), Root) }

// find routes a call and fills in the names in its path. HEAD is answered wherever GET is; the server drops the body.
func (s *surface) find(c *call, path string) (endpoint, error) {
	for _, res := range s.routes {
		raw, ok := match(res.pattern, path)
		if !ok {
			continue
		}
		method := c.r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		ep, ok := res.methods[method]
		if !ok || raw.hole {
			return endpoint{}, notAllowed(c.r.Method, res.allow())
		}
		c.op = ep.op
		return ep, c.names(raw, path)
	}
	return endpoint{}, noRoute(path)
}

// names decodes the names in the path, each once: `+` stays a plus.
func (c *call) names(raw rawNames, path string) error {
	var err error
	c.account, err = url.PathUnescape(raw.account)
	if n := utf8.RuneCountInString(c.account); err != nil || raw.hasAccount && (n < 1 || n > maxAccount) {
		return noRoute(path)
	}
	if c.ns, err = url.PathUnescape(raw.ns); err != nil {
		return badNamespaceID(raw.ns)
	}
	if c.key, err = url.PathUnescape(raw.key); err != nil {
		return cfkv.BadKeyEncoding()
	}
	if raw.hasNS {
		if _, err := kv.ParseNamespaceID(c.ns); err != nil {
			return badNamespaceID(c.ns)
		}
	}
	return nil
}

// rawNames are the escaped names in a path. hole says that one is empty: Cloudflare answers those as a wrong method.
type rawNames struct {
	account, ns, key  string
	hasAccount, hasNS bool
	hole              bool
}

// match compares an escaped path with a pattern.
func match(pattern, path string) (n rawNames, ok bool) {
	for pattern != "" {
		var segment string
		if segment, pattern, _ = strings.Cut(pattern[1:], "/"); pattern != "" {
			pattern = "/" + pattern
		}
		rest, slash := strings.CutPrefix(path, "/")
		if !slash {
			return n, false
		}
		if segment == "{key}" {
			n.key, path = rest, ""
			n.hole = n.hole || rest == ""
			break
		}
		name, after, more := strings.Cut(rest, "/")
		if path = ""; more {
			path = "/" + after
		}
		switch segment {
		case "{account}":
			n.account, n.hasAccount = name, true
		case "{ns}":
			n.ns, n.hasNS = name, true
			n.hole = n.hole || name == ""
		case name:
		default:
			return n, false
		}
	}
	return n, path == ""
}

// allow is the value of the Allow header.
func (res resource) allow() string {
	methods := slices.Collect(maps.Keys(res.methods))
	if _, ok := res.methods[http.MethodGet]; ok {
		methods = append(methods, http.MethodHead)
	}
	slices.Sort(methods)
	return strings.Join(methods, ", ")
}
