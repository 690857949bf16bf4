// Command put compares durable writes and linearizable reads of three kvmesh voters, over HTTP, with three etcd nodes, over
// etcd's own Go client: on loopback, on the same disk, fsync on in both. It is a module of its own, so that etcd's client
// is no dependency of kvmesh. scripts/bench/put.sh builds and runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "put:", err)
		os.Exit(1)
	}
}

type options struct {
	kvmesh, etcd, dir string
	rounds            int
	cell              time.Duration
	value             int
	large             bool
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.kvmesh, "kvmesh", "", "the kvmesh binary")
	flag.StringVar(&o.etcd, "etcd", "etcd", "the etcd binary")
	flag.StringVar(&o.dir, "dir", "", "an existing directory for data and logs, on the disk to be measured")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; the peers take turns, medians are shown")
	flag.DurationVar(&o.cell, "cell", 4*time.Second, "how long each cell of a round is measured")
	flag.IntVar(&o.value, "value", 1024, "bytes of a value")
	flag.BoolVar(&o.large, "large", true, "also measure small PUTs while 25 MiB PUTs run")
	flag.Parse()
	if o.kvmesh == "" || o.dir == "" || o.rounds < 1 {
		return errors.New("-kvmesh, -dir and at least one round are needed")
	}
	if err := pinSelf(); err != nil {
		fmt.Fprintln(os.Stderr, "put: servers and load share all cores:", err)
	}
	results := make(map[string][]measured) // by system and cell
	for round := range o.rounds {
		for _, sys := range []string{"kvmesh", "etcd"} {
			dir := filepath.Join(o.dir, fmt.Sprintf("%d-%s", round, sys))
			if err := o.round(ctx, sys, dir, results); err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, sys, err)
			}
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	printTable(results)
	return nil
}

// cells are what every round measures.
var cells = []struct {
	name    string
	clients int
	read    bool
	aim     string
}{
	{"put, 1 writer", 1, false, "1.2"},
	{"put, 64 writers", 64, false, "2.5"},
	{"put, 256 writers", 256, false, "3"},
	{"linearizable read, 64 clients", 64, true, "2"},
}

const (
	besideQuiet = "put, 16 writers"
	besideLarge = "put, 16 writers, beside 25 MiB PUTs"
)

func (o *options) round(ctx context.Context, name, dir string, results map[string][]measured) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var sys *system
	if name == "kvmesh" {
		sys, err = startKvmesh(ctx, o.kvmesh, dir)
	} else {
		sys, err = startEtcd(ctx, o.etcd, dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	measure := func(cell string, clients int, read bool) error {
		m, err := load(ctx, sys, clients, o.value, o.cell, read)
		if err != nil {
			return fmt.Errorf("%s: %w", cell, err)
		}
		key := name + "/" + cell
		results[key] = append(results[key], m)
		fmt.Printf("%-7s %-38s %8.0f/s  p50 %7.2f ms  p99 %7.2f ms  %6.0f µs CPU\n", name, cell, m.rate, toMs(m.p50), toMs(m.p99), m.cpu)
		return nil
	}
	if _, err := load(ctx, sys, 64, o.value, time.Second, false); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	for _, c := range cells {
		if err := measure(c.name, c.clients, c.read); err != nil {
			return err
		}
	}
	if name != "kvmesh" || !o.large {
		return nil
	}
	if err := measure(besideQuiet, 16, false); err != nil {
		return err
	}
	end := uploadLarge(ctx, sys)
	err = measure(besideLarge, 16, false)
	uploads, upErr := end()
	fmt.Printf("%-7s %d PUTs of 25 MiB meanwhile\n", "", uploads)
	return errors.Join(err, upErr)
}

func printTable(results map[string][]measured) {
	line := strings.Repeat("-", 132)
	fmt.Printf("\n%s\n%-31s %-7s %9s  %-17s %9s %9s %11s   %s\n%s\n", line,
		"", "", "per s", "(range)", "p50 ms", "p99 ms", "CPU µs each", "kvmesh : etcd (per s; aim; CPU)", line)
	for _, c := range cells {
		k, e := median(results["kvmesh/"+c.name]), median(results["etcd/"+c.name])
		row(c.name, "kvmesh", results["kvmesh/"+c.name])
		fmt.Printf("   %.2f x  (aim %s x)  CPU %.2f x\n", k.rate/e.rate, c.aim, k.cpu/e.cpu)
		row("", "etcd", results["etcd/"+c.name])
		fmt.Println()
	}
	if quiet, beside := results["kvmesh/"+besideQuiet], results["kvmesh/"+besideLarge]; len(beside) > 0 {
		row(besideQuiet, "kvmesh", quiet)
		fmt.Println()
		row("  beside 25 MiB PUTs", "kvmesh", beside)
		fmt.Printf("   p99 %.2f x (aim 2 x at most)\n", float64(median(beside).p99)/float64(median(quiet).p99))
	}
	fmt.Println(line)
}

func row(name, sys string, ms []measured) {
	m := median(ms)
	rates := make([]float64, len(ms))
	for i := range ms {
		rates[i] = ms[i].rate
	}
	fmt.Printf("%-31s %-7s %9.0f  %-17s %9.2f %9.2f %11.0f", name, sys, m.rate,
		fmt.Sprintf("(%.0f-%.0f)", slices.Min(rates), slices.Max(rates)), toMs(m.p50), toMs(m.p99), m.cpu)
}

func toMs(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
