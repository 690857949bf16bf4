package cfbind

import (
	"net/http"
	"net/url"
	"strings"

	"kvmesh/node/api"
	"kvmesh/node/cfkv"
	"kvmesh/raftstore/kv"
)

// Miniflare's remote form: every call goes to one URL with its own method and body, the URL that the binding asked for is
// in MF-URL, and each of its headers in MF-Header-<name>.
const (
	headerMiniflareURL    = "MF-URL"
	prefixMiniflareHeader = "Mf-Header-" // as net/http writes it
)

// unwrap makes the binding's request out of one of Miniflare's.
func (c *call) unwrap() error {
	r := c.Request()
	if r.Header.Get("Upgrade") != "" {
		// Miniflare offers a web socket for calls that are no requests. No call of a KV binding needs it.
		return kv.Errorf(kv.CodeUnsupportedByPeer, "this node takes calls of a KV binding as plain HTTP requests, not over a web socket")
	}
	ref, err := url.PathUnescape(strings.TrimPrefix(api.RawPath(r.URL), MiniflarePath))
	if err != nil || strings.Contains(api.RawPath(r.URL)[len(MiniflarePath):], "/") {
		return kv.FieldErrorf(kv.CodeInvalidTitle, "namespace",
			"the path is %s and one namespace, its id or its title, percent-encoded", MiniflarePath)
	}
	c.ns = ref
	asked := r.Header.Values(headerMiniflareURL)
	if len(asked) != 1 {
		return kv.FieldErrorf(kv.CodeInvalidParameter, headerMiniflareURL,
			"this path is for Miniflare's remote bindings, which send the header %s once", headerMiniflareURL)
	}
	if c.url, err = url.Parse(asked[0]); err != nil {
		return refuse(cfkv.BadKeyEncoding())
	}
	if c.url.Path == "" && c.url.Host != "" {
		c.url.Path = "/"
	}
	c.header = http.Header{}
	for name, values := range r.Header {
		if inner, ok := strings.CutPrefix(name, prefixMiniflareHeader); ok {
			c.header[http.CanonicalHeaderKey(inner)] = values
		}
	}
	return nil
}
