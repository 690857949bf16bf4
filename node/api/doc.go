// Package api is the native HTTP surface of a node: the calls below /v1 that DESIGN.md lists, over the Service that the
// composition root provides. It turns requests into validated calls and answers into headers, streams values in both
// directions, and holds the one table from error codes to statuses of this surface. It knows nothing of caches, Raft or
// peers. NewServer, here too, gives every HTTP listener of a node the same limits.
//
// A bulk call and a transaction are documents that are carried out, or staged, while they arrive: docbody.go holds their
// limits, items.go reads their items, jsonstream their text.
//
// Names are taken from the escaped path and decoded exactly once: `/`, `//`, `/../`, `%2F` and `+` in a key are what
// they look like, nothing is cleaned and nothing is redirected. Query strings are form-encoded, as every client
// library's encoder writes them: there, `+` is a space and `%2B` a plus.
package api
