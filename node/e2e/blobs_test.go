package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// blobFiles are the committed large values of a node, by their path within its data directory.
func blobFiles(t *testing.T, n *nodetest.Proc) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	root := filepath.Join(n.DataDir, "blobs")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // renamed meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		if rel, err := filepath.Rel(root, path); err != nil || d.IsDir() || len(filepath.Dir(rel)) != 32 {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files[path[len(root):]] = info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// sameBlobs fails unless both nodes have the same large values on disk, byte for byte.
func sameBlobs(t *testing.T, a, b *nodetest.Proc) {
	t.Helper()
	nodetest.Eventually(t, nodetest.Patience, "the same files", func() error { // the last voter gets its file after the answer
		if x, y := blobFiles(t, a), blobFiles(t, b); !maps.Equal(x, y) {
			return fmt.Errorf("%s has %v, %s has %v", a.Name, x, b.Name, y)
		}
		return nil
	})
	for name := range blobFiles(t, a) {
		x, err1 := os.ReadFile(filepath.Join(a.DataDir, "blobs", name))
		y, err2 := os.ReadFile(filepath.Join(b.DataDir, "blobs", name))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(x, y) {
			t.Errorf("%s and %s differ in %s: %v", a.Name, b.Name, name, err)
		}
	}
}

// metric reads a metric that must be there.
func metric(t *testing.T, n *nodetest.Proc, name string) float64 {
	t.Helper()
	v, err := n.Metric(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func waitForBlobs(t *testing.T, n *nodetest.Proc) {
	t.Helper()
	nodetest.Eventually(t, 2*nodetest.Patience, "no value missing", func() error {
		missing, err := n.Metric(t.Context(), "kvmesh_blobs_missing")
		if err == nil && missing != 0 {
			err = fmt.Errorf("%s lacks %v", n.Name, missing)
		}
		return err
	})
}

// TestLostBlobs takes the files of large values from a stopped voter. Started again it answers every read, with what it gets
// from the others, and fetches the files; killed in the middle of that it goes on where it was. A file in which a bit has
// flipped is never served, and replaced.
func TestLostBlobs(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, _ := layout(t, p, 3, 0)
	throttles := make([]*nodetest.Throttle, len(voters))
	for i, v := range voters { // the others reach each peer port through a throttle, under an address of its own
		host := fmt.Sprintf("127.0.0.%d", i+2)
		_, peer, err1 := net.SplitHostPort(v.Peer)
		_, gossip, err2 := net.SplitHostPort(v.Gossip)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		throttles[i] = nodetest.NewThrottle(t, net.JoinHostPort(host, peer), v.Peer)
		old := v.Gossip
		v.Gossip = net.JoinHostPort(host, gossip)
		v.Args = append(v.Args, "--advertise", host)
		for _, n := range p.All {
			for k, arg := range n.Args {
				if arg == old {
					n.Args[k] = v.Gossip
				}
			}
		}
	}
	startAll(t, p.All)
	victim, other := voters[0], voters[1]

	large := "/v1/kv/default/large"
	if err := putLarge(t.Context(), other, large, 1); err != nil {
		t.Fatal(err)
	}
	small := map[string][]byte{}
	for i, size := range []int{kv.MaxInlineValueBytes + 1, 300_000, kv.MaxCachedValueBytes + 5} {
		target := fmt.Sprintf("/v1/kv/default/small-%d", i)
		small[target] = randomBytes(size)
		other.Must(t, 200, http.MethodPut, target, small[target])
	}
	sameBlobs(t, victim, other)

	victim.Kill(t)
	for name := range blobFiles(t, victim) {
		if err := os.Remove(filepath.Join(victim.DataDir, "blobs", name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, th := range throttles {
		th.Rate(512 << 10)
	}
	victim.Start(t)
	nodetest.WaitReady(t, victim)
	if n := metric(t, victim, "kvmesh_blobs_missing"); n == 0 {
		t.Error("nothing is missing just after the start")
	}
	content := make([]byte, kv.MaxValueBytes)
	if _, err := largeContent(1, kv.MaxValueBytes).Read(content); err != nil {
		t.Fatal(err)
	}
	a := victim.Must(t, 206, http.MethodGet, large, nil, "Range", "bytes=20000000-20100000")
	if !bytes.Equal(a.Body, content[20000000:20100001]) {
		t.Error("other bytes while the value is missing")
	}
	for target, value := range small {
		nodetest.Eventually(t, visible, "a value whose file is missing", func() error { return victim.Sees(t.Context(), target, value) })
	}

	// It is killed when a part of the value has come, and goes on with that.
	partial := func() (largest, all int64) {
		files, err := filepath.Glob(filepath.Join(victim.DataDir, "blobs", "partial", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				largest, all = max(largest, info.Size()), all+info.Size()
			}
		}
		return largest, all
	}
	nodetest.Eventually(t, nodetest.Patience, "a part of the value", func() error {
		if n, _ := partial(); n < 3<<20 {
			return fmt.Errorf("%d bytes have come", n)
		}
		return nil
	})
	victim.Kill(t)
	largest, had := partial()
	if largest >= kv.MaxValueBytes {
		t.Fatalf("all of it had come: %d bytes", largest)
	}
	for _, th := range throttles {
		th.Rate(0)
	}
	victim.Start(t)
	nodetest.WaitReady(t, victim)
	waitForBlobs(t, victim)
	if n := metric(t, victim, "kvmesh_blobs_resumed_bytes_total"); n < 2<<20 || n > float64(had) {
		t.Errorf("%v of %d bytes were not fetched again", n, had)
	}
	t.Logf("%d bytes had come when it was killed, %v of them were not fetched again, %v were", had,
		metric(t, victim, "kvmesh_blobs_resumed_bytes_total"), metric(t, victim, "kvmesh_blobs_fetched_bytes_total"))
	sameBlobs(t, victim, other)

	victim.Kill(t)
	flipped := 0
	for name, size := range blobFiles(t, victim) {
		flipBit(t, filepath.Join(victim.DataDir, "blobs", name), size/2)
		flipped++
	}
	victim.Start(t)
	nodetest.WaitReady(t, victim)
	if err := seesLarge(t.Context(), victim, large, 1); err != nil {
		t.Error(err)
	}
	for target, value := range small {
		nodetest.Eventually(t, visible, "a value whose file is damaged", func() error { return victim.Sees(t.Context(), target, value) })
	}
	nodetest.Eventually(t, nodetest.Patience, "the damage is found", func() error {
		if n := metric(t, victim, "kvmesh_blobs_damaged_total"); n != float64(flipped) {
			return fmt.Errorf("%v of %d", n, flipped)
		}
		return nil
	})
	waitForBlobs(t, victim)
	sameBlobs(t, victim, other)
	aside, err := filepath.Glob(filepath.Join(victim.DataDir, "blobs", "damaged", "*"))
	if err != nil || len(aside) != flipped {
		t.Errorf("%d damaged files are kept aside, want %d: %v", len(aside), flipped, err)
	}
	if log := victim.Log(t); strings.Count(log, "is damaged on this voter's disk") != flipped {
		t.Error("the log does not name each damaged value once")
	}
	if err := seesLarge(t.Context(), victim, large, 1); err != nil {
		t.Error(err)
	}
}

func flipBit(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	if err == nil {
		b[0] ^= 1
		_, err = f.WriteAt(b, at)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestAbandonedUpload hangs up in the middle of large writes: nothing of them stays on any voter.
func TestAbandonedUpload(t *testing.T) {
	bench(t)
	w := start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, EdgesPerRegion: 1, Patient: true})
	dirs := func(name string) (files []string) {
		t.Helper()
		for i, m := range w.mesh.Members {
			if m.Role == certs.RoleVoter {
				found, err := filepath.Glob(filepath.Join(w.mesh.Dir(i), "blobs", name))
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, found...)
			}
		}
		return files
	}
	var uploads sync.WaitGroup
	var bodies []*io.PipeWriter
	ctx, cancel := context.WithCancel(t.Context())
	for i, c := range w.nodes {
		body, out := io.Pipe()
		bodies = append(bodies, out)
		uploads.Go(func() {
			req, err := http.NewRequestWithContext(ctx, http.MethodPut, fmt.Sprintf("%s/v1/kv/default/abandoned-%d", c.Base, i), body)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := http.DefaultTransport.RoundTrip(req); err == nil {
				t.Errorf("%s answered half a request: %s", c.Name, resp.Status)
				_ = resp.Body.Close() // of no interest
			}
		})
		if _, err := out.Write(randomBytes(3 << 20)); err != nil {
			t.Fatal(err)
		}
	}
	nodetest.Eventually(t, nodetest.Patience, "uploads under way", func() error {
		if n := len(dirs("tmp/*")); n < 2*len(w.nodes) {
			return fmt.Errorf("%d unfinished files", n)
		}
		return nil
	})
	cancel()
	for _, b := range bodies { // the transport waits for the next piece before it hangs up
		_ = b.CloseWithError(context.Canceled) // always nil
	}
	uploads.Wait()
	nodetest.Eventually(t, nodetest.Patience, "nothing is left", func() error {
		if left := dirs("tmp/*"); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	if whole := dirs(strings.Repeat("?", 32) + "/*"); len(whole) != 0 {
		t.Errorf("half a value was stored: %v", whole)
	}
}

// TestCatchUpWithLargeValues: a voter that was away for so long that the log no longer reaches back is brought up to date by a
// checkpoint while writes go on, and is ended again and again on its way. In the end it lacks nothing, large values included.
func TestCatchUpWithLargeValues(t *testing.T) {
	bench(t)
	w := start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, Hasty: true, Patient: true})
	const behind = 2
	stop := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
		defer cancel()
		if err := w.mesh.Nodes[behind].Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	restart := func() {
		t.Helper()
		if err := w.mesh.Restart(behind); err != nil {
			t.Fatal(err)
		}
	}
	gauge := func(i int, name string) (sum float64) {
		t.Helper()
		all, err := w.mesh.Nodes[i].Metrics().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.GetName() == name {
				for _, m := range f.GetMetric() {
					sum += m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
		return sum
	}

	// Two writers at the voters that stay: keys of their own, small values and large ones, overwritten and deleted.
	ctx, cancel := context.WithCancel(t.Context())
	var writers sync.WaitGroup
	var acks atomic.Int64
	last := make([]map[string][]byte, 2) // nil = deleted
	for n := range last {
		last[n] = map[string][]byte{}
		writers.Go(func() {
			rng := mathrand.New(mathrand.NewPCG(uint64(n), 1))
			for ctx.Err() == nil {
				target := fmt.Sprintf("/v1/kv/default/w%d-%d", n, rng.IntN(60))
				method, value, size := http.MethodPut, []byte(nil), rng.IntN(300)
				switch rng.IntN(12) {
				case 0:
					size = kv.MaxInlineValueBytes + 1 + rng.IntN(50_000)
				case 1:
					size = kv.MaxCachedValueBytes + 1
				case 2:
					method = http.MethodDelete
				}
				if method == http.MethodPut {
					value = randomBytes(size)
				}
				a, err := w.nodes[n].Do(t.Context(), method, target, value)
				switch {
				case err == nil && a.Status == http.StatusOK:
					last[n][target] = value
					acks.Add(1)
				default: // a leader that steps down on a busy machine: what is there now is not known
					t.Logf("%s: %v %v", target, a, err)
					delete(last[n], target)
				}
			}
		})
	}
	more := func(n int64) {
		t.Helper()
		from := acks.Load()
		nodetest.Eventually(t, 3*nodetest.Patience, "writes go on", func() error {
			if got := acks.Load() - from; got < n {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
	}
	more(50)
	stop()
	cuts := func() float64 {
		return gauge(0, "kvmesh_raft_checkpoints_total") + gauge(1, "kvmesh_raft_checkpoints_total")
	}
	more(800)
	for range 3 {
		before := cuts()
		restart()
		nodetest.Eventually(t, nodetest.Patience, "a checkpoint", func() error {
			if cuts() == before {
				return errors.New("none was cut")
			}
			return nil
		})
		stop()
		more(400)
	}
	restart()
	more(200)
	cancel()
	writers.Wait()
	back := nodetest.NewClient(w.nodes[behind].Name, w.mesh.Nodes[behind].HTTPURL()) // it has other ports now
	defer back.CloseIdle()
	nodetest.Ready(t, w.mesh)
	nodetest.Eventually(t, nodetest.Patience, "a full copy", func() error {
		s, err := w.nodes[0].Cluster(t.Context())
		if err != nil {
			return err
		}
		for _, m := range s.Members {
			if m.MissingBlobs != 0 || m.W < s.Revision {
				return fmt.Errorf("%+v, the mesh is at %d", m, s.Revision)
			}
		}
		return nil
	})
	if gauge(behind, "kvmesh_blobs_fetched_total") == 0 {
		t.Error("no large value was fetched")
	}
	values := 0
	for _, keys := range last {
		for target, value := range keys {
			if value == nil {
				nodetest.Eventually(t, visible, "deleted", func() error { return back.Gone(t.Context(), target, "key_not_found") })
				continue
			}
			values++
			nodetest.Eventually(t, visible, "acknowledged", func() error { return back.Sees(t.Context(), target, value) })
		}
	}
	t.Logf("%d writes, %v checkpoints, %v large values fetched, %d values compared", acks.Load(), cuts(),
		gauge(behind, "kvmesh_blobs_fetched_total"), values)
}
