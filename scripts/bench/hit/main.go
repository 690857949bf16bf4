// Command hit is a bare net/http server that answers every request with the same bytes and the same headers as a node does:
// what Go's own server costs without anything behind it. Usage: hit PORT BYTES
package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strconv"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: hit PORT BYTES")
		os.Exit(2)
	}
	size, err := strconv.Atoi(os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	runtime.GOMAXPROCS(1)
	body := bytes.Repeat([]byte("x"), size)
	answer := func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Accept-Ranges", "bytes")
		h.Set("Age", "0")
		h.Set("Content-Length", os.Args[2])
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Etag", `"00000000-1"`)
		h.Set("Kv-Bookmark", "00000000000000000000000000000000.1")
		h.Set("Kv-Cache", "hit")
		h.Set("Kv-Revision", "1")
		h.Set("Kv-Staleness-Ms", "1")
		h.Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(body) // an error means that the client has gone
	}
	fmt.Fprintln(os.Stderr, http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(answer)))
	os.Exit(1)
}
