// Package cfbind is the surface of a node that a Worker's KV binding speaks: the HTTP protocol between workerd and a KV
// service. A request is one of it when it has the header Kv-Namespace (an id or a title, which workerd is told to inject),
// or when its path is that of Miniflare's remote form, /v1/miniflare/{namespace}.
//
// A Worker sees nothing of an error but the status line ("KV PUT failed: 413 Value length of …"), so each text of cfkv, and
// of the mesh, is sent as the reason phrase, and again as the body for people. 404 and 410 mean to a Worker that the key
// does not exist; nothing else is ever answered with them. The limits are those of Workers KV (cfkv), to the letter.
package cfbind
