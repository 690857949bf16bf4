// Package nodetest is the bench of the whole-system tests: meshes in the test's own process, meshes of real processes that
// can be killed, and an HTTP client that sends exactly the bytes it is told to. It decides nothing about what is right;
// the tests in node/e2e do.
package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"testing"
	"time"

	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
)

const (
	// Patience bounds every wait for something that must happen; a test that reaches it has failed. It says nothing about
	// how fast the mesh is, only that the machine is busy.
	Patience = 40 * time.Second
	// Pause is the pause between two looks at something that nobody announces.
	Pause = 10 * time.Millisecond
	// cacheBytes is the cache of a node: the tests' values fit, and a mesh of six does not take the machine's memory.
	cacheBytes = 32 << 20
)

// Eventually calls look until it returns nil. It fails the test with look's last error when within has passed.
func Eventually(t testing.TB, within time.Duration, what string, look func() error) {
	t.Helper()
	if err := Until(t.Context(), within, look); err != nil {
		t.Fatalf("%s: not within %v: %v", what, within, err)
	}
}

// Until calls look until it returns nil, and returns its last error when within has passed or ctx has ended.
func Until(ctx context.Context, within time.Duration, look func() error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(Pause):
		case <-ctx.Done():
			return err
		}
	}
}

// Start runs a mesh in this process until the test ends, and returns when every node is ready. Ports, keys, the logger and
// the data directory are filled in where the shape leaves them empty. What the nodes log is printed if the test fails.
func Start(t *testing.T, s devmesh.Shape) *devmesh.Mesh {
	t.Helper()
	if s.MeshKey == (certs.MeshKey{}) {
		s.MeshKey = certs.NewMeshKey()
	}
	if s.DataDir == "" {
		s.DataDir = t.TempDir()
	}
	if s.CacheBytes == 0 {
		s.CacheBytes = cacheBytes
	}
	out := &logBook{}
	s.Logger = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelInfo}))
	s.Fatal = func(err error) { out.fatal(err) }
	m, err := devmesh.Start(s)
	if err != nil {
		t.Fatalf("start the mesh: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(stop(m), out.fatalErr()); err != nil {
			t.Errorf("stop the mesh: %v", err)
		}
		if t.Failed() {
			t.Logf("what the nodes logged:\n%s", out.tail())
		}
	})
	Ready(t, m)
	return m
}

// stop stops a mesh. One that does not stop is an error with the stacks of everything that runs.
func stop(m *devmesh.Mesh) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- m.Stop(ctx) }()
	select {
	case err := <-done:
		return err
	case <-time.After(Patience + Patience/2):
		stacks := make([]byte, 1<<20)
		return fmt.Errorf("it still runs %v after its time was up:\n%s", Patience/2, stacks[:runtime.Stack(stacks, true)])
	}
}

// Ready waits until every node of the mesh is ready.
func Ready(t testing.TB, m *devmesh.Mesh) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	if err := m.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// Clients returns one client for each node of a mesh, in the mesh's order.
func Clients(m *devmesh.Mesh) []*Client {
	out := make([]*Client, len(m.Nodes))
	for i, n := range m.Nodes {
		out[i] = NewClient(m.Members[i].Name, n.HTTPURL())
	}
	return out
}

// logBook keeps the end of what all nodes of a mesh log.
type logBook struct {
	mu   sync.Mutex // guards the fields below
	buf  []byte
	errs []error
}

const maxLog = 1 << 20

func (b *logBook) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) > maxLog {
		b.buf = append(b.buf[:0], b.buf[len(b.buf)/2:]...)
	}
	b.buf = append(b.buf, p...)
	return len(p), nil
}

func (b *logBook) fatal(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errs = append(b.errs, fmt.Errorf("a node could not go on: %w", err))
}

func (b *logBook) fatalErr() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Join(b.errs...)
}

func (b *logBook) tail() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return tail(b.buf)
}

// shownLog is how much of a log is printed when a test fails.
const shownLog = 24 << 10

func tail(b []byte) []byte {
	if len(b) > shownLog {
		b = b[len(b)-shownLog:]
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			b = b[i+1:]
		}
	}
	return bytes.Clone(b)
}
