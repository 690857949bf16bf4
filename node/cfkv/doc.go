// Package cfkv is what the two Cloudflare surfaces of a node have in common: the limits of Workers KV, which hold on them
// to the letter, the texts by which Workers KV refuses what breaks them, and the optional limit of one write a second to a
// key. The Workers binding tells a Problem's text in its status line, the REST API wraps it as `<operation>: '<text>'`.
// It knows nothing of HTTP requests, of bodies or of the mesh.
package cfkv
