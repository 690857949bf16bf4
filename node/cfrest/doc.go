// Package cfrest is the Cloudflare surface of a node for programs: version 4 of the REST API for Workers KV, below
// /client/v4, as wrangler and Cloudflare's SDKs speak it. It serves the same api.Service as the native surface, by the same
// path through the cache, and holds Workers KV's limits to the letter (package cfkv). Every answer but a value is the
// API's envelope; errors.go has the one table from the codes of kv to the API's. DESIGN.md of package node lists what is
// decided here that nobody has documented.
//
// A mesh is one account: its id is the mesh's, and any other of 1 to 32 characters means the same.
package cfrest
