// Command kvmesh is a self-hosted Workers KV: run `kvmesh dev` to try it, `kvmesh serve` to run one node.
package main

import (
	"os"

	"kvmesh/node/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
