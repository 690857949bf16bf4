package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"kvmesh/node/nodetest"
)

// heavy is how many meshes run at a time: each is several nodes, and their elections need the machine now and then.
const heavy = 2

var slots = make(chan struct{}, heavy)

// bench makes a test run beside the others, but only heavy of them at a time.
func bench(t *testing.T) {
	t.Helper()
	t.Parallel()
	slots <- struct{}{}
	t.Cleanup(func() { <-slots }) // registered first, so it runs when all of the test's own is gone
}

var workDir string // of the test binary, removed at its end

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "kvmesh-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		workDir = dir
		code := m.Run()
		if code == 0 {
			code = report("left behind by nodes that were stopped", leaks())
		}
		return max(code, report("clean up", os.RemoveAll(dir)))
	}())
}

// leaks finds goroutines of nodes that were stopped. It is patient: memberlist waits for nobody, and a probe that runs when
// it is shut down ends with its own timeout.
func leaks() error {
	http.DefaultClient.CloseIdleConnections()
	return nodetest.Until(context.Background(), nodetest.Patience, func() error { return goleak.Find() })
}

func report(what string, err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
	return 1
}

var build = sync.OnceValues(func() (string, error) { return nodetest.Build(workDir, root) })

// program is the path of the real program, built once for all tests.
func program(t *testing.T) string {
	t.Helper()
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}
