package cache

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func nodes(n int) (list []Candidate) {
	for i := range n {
		list = append(list, Candidate{ID: fmt.Sprintf("4a1c7e52-0000-4000-8000-%012d", i)})
	}
	return list
}

// hashes are spread like hash64, and the same in every run.
func hashes(n int) (list []uint64) {
	x := uint64(1)
	for range n {
		x = x*6364136223846793005 + 1442695040888963407
		list = append(list, x^x>>29)
	}
	return list
}

func owned(candidates []Candidate, n int) map[string]int {
	owned := map[string]int{}
	for _, h := range hashes(n) {
		owned[Owner(h, candidates)]++
	}
	return owned
}

// TestOwnerBalance: shares are within five standard deviations of the weights'.
func TestOwnerBalance(t *testing.T) {
	const n = 100_000
	list := nodes(8)
	list[2].Weight, list[5].Weight, list[6].Weight = 1, 3, 0.5
	total := 0.0
	for i := range list {
		total += max(list[i].Weight, map[bool]float64{true: 1}[list[i].Weight == 0])
	}
	got := owned(list, n)
	for _, c := range list {
		p := 1 / total
		if c.Weight > 0 {
			p = c.Weight / total
		}
		if d := math.Abs(float64(got[c.ID]) - n*p); d > 5*math.Sqrt(n*p*(1-p)) {
			t.Errorf("weight %v owns %d of %d keys, want about %.0f", c.Weight, got[c.ID], n, n*p)
		}
	}
}

// TestOwnerMovement: a node that goes moves its own keys only, and they spread over all others.
func TestOwnerMovement(t *testing.T) {
	all := nodes(10)
	fewer := slices.Delete(slices.Clone(all), 4, 5)
	heirs := map[string]int{}
	for _, h := range hashes(20_000) {
		before, after := Owner(h, all), Owner(h, fewer)
		if before != all[4].ID && before != after {
			t.Fatalf("a key moved from %s to %s though its owner stayed", before, after)
		}
		if before == all[4].ID {
			heirs[after]++
		}
	}
	if len(heirs) != len(fewer) {
		t.Errorf("%d of %d inherited", len(heirs), len(fewer))
	}
	heavier := slices.Clone(all)
	heavier[4].Weight = 2
	for _, h := range hashes(20_000) {
		if before, after := Owner(h, all), Owner(h, heavier); before != after && after != all[4].ID {
			t.Fatalf("more weight for one moved a key from %s to %s", before, after)
		}
	}
}

func TestOwnerIsAgreed(t *testing.T) {
	list := nodes(5)
	turned := slices.Clone(list)
	slices.Reverse(turned)
	for _, h := range append(hashes(1000), 0, math.MaxUint64) {
		if a, b := Owner(h, list), Owner(h, turned); a != b || a == "" {
			t.Fatalf("%s or %s, by the order of the candidates", a, b)
		}
	}
	if Owner(1, nil) != "" || Owner(1, list[:1]) != list[0].ID {
		t.Error("none, or the only one")
	}
	// The choice is part of how a mesh of different versions works together: it must not change.
	if got := Owner(0x0123456789abcdef, list); got != list[3].ID {
		t.Errorf("the owner of the pinned hash is %s", got)
	}
}
