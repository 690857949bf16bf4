// Command realdata runs a whole source tree through a mesh of separate processes (three voters and three edges in three
// regions) and compares every byte: after the import, after 200 changes that must be seen at once, and after SIGKILL of
// all six processes. It is part of the gate and stands outside the mesh: it starts the kvmesh binary, uses its commands
// and speaks HTTP to it, and shares no code with it. scripts/realdata.sh builds both and runs it.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	namespace = "go-source"
	// changedFiles get a new version, each of at most maxChanged bytes: the largest value that a cache holds in one piece.
	changedFiles = 200
	maxChanged   = 1 << 20
	// phaseLimit bounds the import and each whole comparison. They take seconds; this only ends a mesh that hangs.
	phaseLimit = 5 * time.Minute
	// bigKey holds the largest value there may be.
	bigKey = "realdata/25 MiB"
)

func main() {
	var o options
	flag.StringVar(&o.binary, "kvmesh", "", "the kvmesh `binary`")
	flag.StringVar(&o.source, "source", "", "the `directory` to import")
	flag.StringVar(&o.dir, "dir", "", "keep data and logs in this new `directory` (default: a temporary one that is removed)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, o, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "realdata: FAILED: %v\n", err)
		os.Exit(1)
	}
}

type options struct{ binary, source, dir string }

// run is the whole check. Nothing is left when it returns, except options.dir if one is given.
func run(ctx context.Context, o options, out, errOut io.Writer) (err error) {
	if o.binary == "" || o.source == "" || flag.NArg() > 0 {
		return errors.New("usage: realdata -kvmesh BINARY -source DIR [-dir DIR]")
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "kvmesh-realdata-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	} else if err := os.Mkdir(o.dir, 0o700); err != nil {
		return err
	}
	r := &runner{options: o, out: out}
	if err := r.prepare(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.mesh.tails(errOut)
			for _, name := range r.mesh.crashed() {
				err = fmt.Errorf("%w\nended by itself: %s", err, name)
			}
		}
		err = errors.Join(err, r.mesh.kill())
	}()
	return r.phases(ctx)
}

// runner holds what the phases share.
type runner struct {
	options
	out     io.Writer
	tree    string        // what is imported: source, or a copy of its regular files
	want    []expectation // what the namespace must hold by now, sorted by key
	mesh    *mesh
	release func() // lets go of the reserved ports
	client  *client
}

// prepare reads the tree, makes the mesh key and lays out the mesh.
func (r *runner) prepare(ctx context.Context) error {
	var refused []string
	var err error
	if r.source, err = filepath.EvalSymlinks(r.source); err != nil { // some systems link GOROOT/src to another place
		return err
	}
	if r.want, refused, err = scan(r.source); err != nil {
		return fmt.Errorf("read the tree: %w", err)
	}
	if r.tree = r.source; len(refused) > 0 {
		fmt.Fprintf(r.out, "%-9s %d links and special files, which an import refuses, for example %s\n", "left out", len(refused), refused[0])
		r.tree = filepath.Join(r.dir, "tree")
		if err := copyTree(r.source, r.tree, r.want); err != nil {
			return fmt.Errorf("copy the regular files: %w", err)
		}
	}
	r.printf("tree", "%s: %s", r.source, describe(r.want))

	key, err := r.kvmesh(ctx, "", "mesh-key", "new")
	if err != nil {
		return err
	}
	keyFile := filepath.Join(r.dir, "mesh.key")
	if err := os.WriteFile(keyFile, key, 0o600); err != nil {
		return err
	}
	if r.mesh, r.release, err = newMesh(r.binary, r.dir, keyFile); err != nil {
		return err
	}
	r.client = newClient(&http.Transport{
		MaxIdleConnsPerHost: workers, DisableCompression: true, ExpectContinueTimeout: 10 * time.Second,
	}, namespace)
	return nil
}

// phases is the check itself, step by step.
func (r *runner) phases(ctx context.Context) error {
	edges := r.mesh.edges()
	writer, readers := edges[0], edges[1:]

	r.release()
	took, err := r.mesh.start(ctx)
	if err != nil {
		return err
	}
	r.printf("mesh", "3 voters and 3 edges in %s: ready after %s", strings.Join(regions, ", "), seconds(took))

	if err := r.importTree(ctx, writer); err != nil {
		return err
	}
	if err := r.compare(ctx, "compare", readers); err != nil {
		return err
	}

	began := time.Now()
	big, err := r.client.limits(ctx, writer, readers, bigKey, maxValueBytes)
	if err != nil {
		return err
	}
	r.expect(big)
	r.printf("limits", "%d bytes written and read at %d edges, one byte more refused with 413: %s",
		big.size, len(readers), seconds(time.Since(began)))
	r.tiers()

	if err := r.change(ctx, writer, readers); err != nil {
		return err
	}

	if crashed := r.mesh.crashed(); len(crashed) > 0 {
		return errors.New("a process ended by itself before it was killed")
	}
	if err := r.mesh.kill(); err != nil {
		return err
	}
	r.client.http.CloseIdleConnections()
	if took, err = r.mesh.start(ctx); err != nil {
		return fmt.Errorf("after SIGKILL of all nodes: %w", err)
	}
	r.printf("SIGKILL", "all 6 processes, started again: ready after %s", seconds(took))
	if err := r.compare(ctx, "compare", readers); err != nil {
		return fmt.Errorf("after SIGKILL of all nodes: %w", err)
	}
	r.printf("result", "no difference; all reads by Kv-Cache:%s", r.client.tally.total())
	return nil
}

func (r *runner) importTree(ctx context.Context, to edge) error {
	ctx, cancel := context.WithTimeoutCause(ctx, phaseLimit, fmt.Errorf("not done within %v", phaseLimit))
	defer cancel()
	if _, err := r.kvmesh(ctx, to.url, "namespace", "create", namespace); err != nil {
		return err
	}
	began := time.Now()
	if _, err := r.kvmesh(ctx, to.url, "import", "--namespace", namespace, r.tree); err != nil {
		return err
	}
	files, bytes := totals(r.want)
	r.printf("import", "through %s: %s", to.name, rates(files, "files", bytes, time.Since(began)))
	return nil
}

func (r *runner) compare(ctx context.Context, name string, edges []edge) error {
	ctx, cancel := context.WithTimeoutCause(ctx, phaseLimit, fmt.Errorf("not done within %v", phaseLimit))
	defer cancel()
	began := time.Now()
	bytes, err := r.client.compare(ctx, edges, r.want)
	r.printf(name, "at %s and %s: %s", edges[0].name, edges[1].name, rates(len(edges)*len(r.want), "reads", bytes, time.Since(began)))
	r.tiers()
	return err
}

// change gives files a new version and shows that the caches of the other regions follow at once.
func (r *runner) change(ctx context.Context, writer edge, readers []edge) error {
	picked, err := pick(r.want, changedFiles, maxChanged)
	if err != nil {
		return err
	}
	changes := make([]change, len(picked))
	for i, p := range picked {
		old, err := os.ReadFile(filepath.Join(r.tree, filepath.FromSlash(p.key)))
		if err != nil {
			return err
		}
		changes[i] = newVersion(p, old)
	}
	if err := r.client.warm(ctx, readers, picked); err != nil {
		return err
	}
	r.printf("warm", "%d keys are hits with cache_ttl=%d at both edges", len(picked), longTTL)
	r.tiers()

	v, err := r.client.publish(ctx, writer, readers, changes)
	if err != nil {
		r.tiers()
		return err
	}
	r.printf("change", "%d new versions through %s in %s; after the last acknowledgement all were read new with cache_ttl=%d within %s (p50 %s)",
		len(changes), writer.name, seconds(v.writing), longTTL, seconds(v.max), seconds(v.p50))
	r.printf("", "%d reads until then, %d of them still old", v.reads, v.stale)
	r.tiers()
	for _, c := range changes {
		r.expect(c.expectation)
	}
	return nil
}

// newVersion changes the value a little and, so that its size moves both ways, drops its first half in every other case.
func newVersion(e expectation, old []byte) change {
	value := old
	if e.sum[0]%2 == 0 || len(old) > maxChanged-256 {
		value = old[len(old)/2:]
	}
	value = fmt.Appendf(slices.Clone(value), "\nthe second version of a value of %d bytes\n", len(old))
	return change{
		expectation: expectation{e.key, sha256.Sum256(value), int64(len(value))},
		old:         e.sum,
		value:       value,
	}
}

// expect records what a key must hold from now on.
func (r *runner) expect(e expectation) {
	i, found := slices.BinarySearchFunc(r.want, e, func(a, b expectation) int { return cmp.Compare(a.key, b.key) })
	if found {
		r.want[i] = e
	} else {
		r.want = slices.Insert(r.want, i, e)
	}
}

// kvmesh runs one command of the binary against the node at url and returns its standard output.
func (r *runner) kvmesh(ctx context.Context, url string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.binary, args...)
	cmd.Env = meshEnv(url)
	cmd.SysProcAttr = dieWithParent()
	var stderr tailWriter
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("kvmesh %q: %w (%v)\n%s%s", args, err, context.Cause(ctx), stderr.b, out[max(0, len(out)-4096):])
	}
	return out, nil
}

// tailWriter keeps the last few KiB of what is written to it.
type tailWriter struct{ b []byte }

func (t *tailWriter) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - 4096; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (r *runner) printf(phase, format string, args ...any) {
	fmt.Fprintf(r.out, "%-9s %s\n", phase, fmt.Sprintf(format, args...))
}

// tiers prints the answers that were counted since it was last called.
func (r *runner) tiers() {
	for _, line := range r.client.tally.take() {
		r.printf("", "  %s", line)
	}
}
