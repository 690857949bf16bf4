package cache

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// BenchmarkLook is a hit, from the bytes of a key to its answer: of one hot key, and of any of a million.
func BenchmarkLook(b *testing.B) {
	for _, n := range []int{1, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := &rig{}
			r.c = New(Options{Bytes: 2 << 30, Clock: r.now})
			r.c.Adopt(epoch1, 0)
			keys := make([][]byte, n)
			for i := range keys {
				keys[i] = fmt.Appendf(nil, "bench/key-%07d", i)
				w := r.c.BeginWrite(nsA, string(keys[i]))
				if err := w.Done(State{Epoch: epoch1, AsOf: 5, Revision: 5, Value: make([]byte, 288)}); err != nil {
					b.Fatal(err)
				}
			}
			rng := rand.New(rand.NewPCG(1, 1))
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := r.c.Fresh(r.c.Look(nsA, keys[rng.IntN(n)]), minute); !ok {
					b.Fatal("a miss")
				}
			}
		})
	}
}
