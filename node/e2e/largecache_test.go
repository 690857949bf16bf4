package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"testing"

	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
)

// TestLargeFromMemory reads a value of several MiB at an edge until the edge holds it: from then on it is answered, whole and
// in parts, without any voter. A new value is seen although the old one is held.
func TestLargeFromMemory(t *testing.T) {
	bench(t)
	w := start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 1, EdgesPerRegion: 1, Patient: true, CacheBytes: 64 << 20})
	edge, voter := w.role("edge")[0], w.role("voter")[0]
	const target = "/v1/kv/default/large"
	held := func(value []byte) {
		t.Helper()
		voter.Must(t, 200, http.MethodPut, target, value)
		nodetest.Eventually(t, visible, "the value is read from memory", func() error {
			before := edgeReads(t, w) // the value before this one is in memory, too
			if err := edge.Sees(t.Context(), target, value); err != nil {
				return err
			}
			if edgeReads(t, w) == before {
				return fmt.Errorf("it has been streamed each time")
			}
			return nil
		})
	}
	held(randomBytes(3 << 20))
	value := randomBytes(5<<20 + 7)
	held(value)
	for i, m := range w.mesh.Members {
		if m.Role == "voter" {
			ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
			defer cancel()
			if err := w.mesh.Nodes[i].Stop(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := edge.Sees(t.Context(), target, value); err != nil {
		t.Error(err)
	}
	if a := edge.Must(t, 206, http.MethodGet, target, nil, "Range", "bytes=5000000-5242886"); !bytes.Equal(a.Body, value[5000000:]) {
		t.Errorf("%d other bytes of a part", len(a.Body))
	}
}

// edgeReads is how many large values the edges have given from memory.
func edgeReads(t *testing.T, w *world) (sum float64) {
	t.Helper()
	for i, m := range w.mesh.Members {
		if m.Role != "edge" {
			continue
		}
		all, err := w.mesh.Nodes[i].Metrics().Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			if f.GetName() != "kvmesh_large_reads_total" {
				continue
			}
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == "hit" {
					sum += m.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}
