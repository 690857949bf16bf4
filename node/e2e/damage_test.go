package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// badly is many flipped bits in the log: a large part of its file is not in use, but not so large a part.
const badly = "raft.db, many"

// TestDamaged flips bits in the files of a stopped voter, one after the other. Each is found at the start or when what is
// damaged is needed, or does no harm; the voter gets what it lacks from the others and goes on under its own id, and no
// reader anywhere ever sees a wrong byte.
func TestDamaged(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	startAll(t, p.All)
	victim := voters[2]
	before, err := victim.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]byte{}
	write := func(name string, sizes ...int) {
		t.Helper()
		for i, size := range sizes {
			target, value := fmt.Sprintf("/v1/kv/default/%s-%d", name, i), randomBytes(size)
			insist(t, voters[0].Client, http.MethodPut, target, value)
			values[target] = value
		}
	}
	check := func(what string) {
		t.Helper()
		for target, value := range values {
			for _, n := range append(edges, victim) {
				nodetest.Eventually(t, nodetest.Patience, "after "+what, func() error {
					a, err := n.Do(t.Context(), http.MethodGet, target, nil)
					switch {
					case err != nil:
						return err
					case a.Status == http.StatusOK && !bytes.Equal(a.Body, value):
						t.Fatalf("after %s: a wrong value at %s for %s: %v", what, n.Name, target, a)
					case a.Status == http.StatusNotFound:
						t.Fatalf("after %s: an acknowledged value is gone at %s: %s", what, n.Name, target)
					case a.Status != http.StatusOK:
						return fmt.Errorf("%s: %v", n.Name, a)
					}
					return nil
				})
			}
		}
	}
	write("early", 10, 500, 5000, 40_000, kv.MaxInlineValueBytes, kv.MaxInlineValueBytes+1, 2<<20)
	snapshotEverywhere(t, voters)
	write("late", 10, 500, 5000, kv.MaxInlineValueBytes+1)

	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	found := map[string]int{}
	for _, kind := range []string{"raft.db", "vote", ".sst", ".blob", "MANIFEST", "snapshots", "blobs", "raft.db", badly} {
		victim.Kill(t)
		what := ""
		if kind == badly {
			for range 64 {
				what = flipOne(t, rng, victim.DataDir, "raft.db")
			}
			what = "64 flipped bits, the last one " + what
		} else {
			what = flipOne(t, rng, victim.DataDir, kind)
		}
		said := len(victim.Log(t))
		victim.Start(t)
		nodetest.WaitReady(t, victim)
		check(what)
		write(fmt.Sprintf("then-%d", len(values)), 100)
		if strings.Contains(victim.Log(t)[said:], "damaged") {
			found[kind]++
		}
		t.Logf("%s: found %v", what, strings.Contains(victim.Log(t)[said:], "damaged"))
	}
	for _, kind := range []string{badly, "blobs"} { // the others have parts that nobody reads
		if found[kind] == 0 {
			t.Errorf("no flipped bit of %s was found", kind)
		}
	}
	after, err := victim.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Self != before.Self {
		t.Errorf("the voter has another id now: %s, it was %s", after.Self, before.Self)
	}
	// It is worth a vote: with another one dead, the two of them take writes.
	voters[1].Kill(t)
	write("without-one", 100)
	check("the death of another voter")
}

// snapshotEverywhere writes until each voter's log is cut behind a snapshot.
func snapshotEverywhere(t *testing.T, voters []*nodetest.Proc) {
	t.Helper()
	value := randomBytes(60_000)
	for i := 0; ; i++ {
		insist(t, voters[i%len(voters)].Client, http.MethodPut, fmt.Sprintf("/v1/kv/default/filler-%d", i%50), value)
		if i%100 != 99 {
			continue
		}
		if i > 3000 {
			t.Fatal("no snapshot after 3000 writes of 60,000 bytes")
		}
		all := true
		for _, v := range voters {
			n, err := v.Metric(t.Context(), "kvmesh_raft_snapshots_total")
			if err != nil {
				t.Fatal(err)
			}
			all = all && n > 0
		}
		if all {
			return
		}
	}
}

// flipOne flips a bit in a file of a kind. It looks for a byte that is not zero, because parts of some files are not in use.
func flipOne(t *testing.T, rng *rand.Rand, dir, kind string) string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() == 0 {
			return err
		}
		switch base := filepath.Base(rel); {
		case slices.Contains(strings.Split(filepath.ToSlash(filepath.Dir(rel)), "/"), kind),
			strings.HasPrefix(base, kind), filepath.Ext(base) == kind:
			files = append(files, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("there is no %s below %s", kind, dir)
	}
	path := filepath.Join(dir, files[rng.IntN(len(files))])
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := rng.IntN(len(text))
	for range 1000 {
		if text[at] != 0 {
			break
		}
		at = rng.IntN(len(text))
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	bit := rng.IntN(8)
	if _, err := f.WriteAt([]byte{text[at] ^ 1<<bit}, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("bit %d of byte %d of %d in %s", bit, at, len(text), strings.TrimPrefix(path, dir))
}
