// Package hitpath answers reads of what a node holds in memory straight from the connection: it reads the bytes of a public
// connection itself, and a complete, strictly valid GET or HEAD of one value is answered by one write, without net/http and
// without allocating. Everything else, from the first doubtful byte on, is handed with its unread bytes to a stock
// http.Server, and stays there.
//
// The path gives only answers that net/http would have given: the same bytes in the same order, but for the Date. DESIGN.md
// in this folder says how that is held, and what each part costs.
package hitpath
