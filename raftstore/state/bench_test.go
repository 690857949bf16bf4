package state

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	"kvmesh/raftstore/command"
)

// cpu is the processor time of the process in nanoseconds, Pebble's flushes and compactions included.
func cpu(b *testing.B) int64 {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return r.Utime.Nano() + r.Stime.Nano()
}

func openBench(b *testing.B) *fixture {
	b.Helper()
	s, err := Open(b.TempDir(), Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Close(); err != nil {
			b.Error(err)
		}
	})
	f := &fixture{State: s, t: b, next: 1}
	f.at(0, initOp())
	return f
}

// BenchmarkApply is the writing side at work: batches of 256 puts of 300 bytes, decoded from their log form, over ever new
// keys, over a million keys at random, and over a thousand hot ones.
func BenchmarkApply(b *testing.B) {
	const batch = 256
	value := strings.Repeat("v", 300)
	for name, next := range map[string]func(i int) int{
		"new":    func(i int) int { return i },
		"random": func(int) int { return rand.IntN(1_000_000) },
		"hot":    func(int) int { return rand.IntN(1000) },
	} {
		b.Run(name, func(b *testing.B) {
			f := openBench(b)
			n, start := 0, cpu(b)
			for b.Loop() {
				in := command.Batch{MeshTime: 1000, Ops: make([]command.Op, batch)}
				for i := range in.Ops {
					in.Ops[i] = put(fmt.Sprintf("some/path/%08d", next(n)), value)
					n++
				}
				decoded, err := command.Decode(command.Append(nil, &in))
				if err != nil {
					b.Fatal(err)
				}
				f.at(1, decoded.Ops...)
			}
			b.ReportMetric(float64(cpu(b)-start)/float64(n), "cpu-ns/put")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	f := openBench(b)
	const keys = 100_000
	for i := 0; i < keys; i += 1000 {
		ops := make([]command.Op, 1000)
		for j := range ops {
			ops[j] = put(fmt.Sprintf("some/path/%08d", i+j), strings.Repeat("v", 300))
		}
		f.at(1, ops...)
	}
	b.Run("Get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := f.Get(ns1, fmt.Sprintf("some/path/%08d", rand.IntN(keys)), false); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("List1000", func(b *testing.B) {
		for b.Loop() {
			if _, err := f.List(ListQuery{Namespace: ns1, Prefix: "some/path/0005"}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
