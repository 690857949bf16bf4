// Command gosdk runs every call for Workers KV of Cloudflare's Go SDK against the REST API of a mesh:
//
//	gosdk BASE_URL [TOKEN]
//
// BASE_URL ends in /client/v4. For each case it prints a line "ok cloudflare-go CASE" or "FAILED cloudflare-go CASE", the
// reason on standard error, and it exits with 1 after a failure.
//
// It imports the SDK's package kv and not its root, which makes the SDK's code for some hundred other products part of the
// program and takes minutes to compile. The root's F, which marks a parameter as given, is given here instead.
package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cloudflare/cloudflare-go/v6/kv"
	"github.com/cloudflare/cloudflare-go/v6/option"
)

// account is any id: a mesh is one account.
const account = "0123456789abcdef0123456789abcdef"

// A hung server must not hang the caller's machine.
const deadline = 10 * time.Minute

func main() {
	args := os.Args[1:]
	if len(args) != 1 && len(args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gosdk BASE_URL [TOKEN]")
		os.Exit(2)
	}
	token := strings.Repeat("x", 40)
	if len(args) == 2 {
		token = args[1]
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	c := &client{
		kv:    kv.NewNamespaceService(option.WithBaseURL(args[0]), option.WithAPIToken(token)),
		title: "cloudflare-go-" + rand.Text(),
	}
	if !run(ctx, c) {
		os.Exit(1)
	}
}

// run runs all cases in their order and reports whether all passed.
func run(ctx context.Context, c *client) bool {
	passed := true
	for _, it := range cases() {
		if err := it.run(ctx, c); err != nil {
			passed = false
			fmt.Println("FAILED cloudflare-go " + it.name)
			fmt.Fprintf(os.Stderr, "--- cloudflare-go %s\n%v\n", it.name, err)
			continue
		}
		fmt.Println("ok cloudflare-go " + it.name)
	}
	return passed
}
