//go:build linux

// Command nemesis breaks a mesh of separate processes in every way that it knows, while clients write and read, and proves
// from what they saw that nothing acknowledged was lost and that strong reads were linearizable. It stands outside the
// mesh: it starts the kvmesh binary, speaks HTTP to it, and shares no code with it. scripts/nemesis.sh builds both and
// runs it.
//
//	main → enter (namespaces of its own) → session
//	session: mesh (processes) ← network (spaces | proxies)
//	         load (clients, probes) → caller → recorder
//	         plan (faults, one file a family) → world → events
//	         judge: audit (by revisions) and checkPair (porcupine) → report
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// innerEnv tells the run inside the namespaces which network it has.
const innerEnv = "NEMESIS_NETWORK"

type options struct {
	binary, mutant string
	minutes        float64
	seed           uint64
	profile        string
	network        string
	dir            string
	only           string
	planted        bool
	once           bool
	// mounts says that this program is in a mount namespace of its own, where disks can be mounted.
	mounts bool
}

// scale stretches how long faults last: short runs have short faults.
func (o *options) scale() float64 { return min(1, max(0.1, o.minutes/15)) }

func main() {
	var o options
	flag.StringVar(&o.binary, "kvmesh", "", "the kvmesh `binary`")
	flag.StringVar(&o.mutant, "mutant", "", "the same, built with the tag mutants: the `binary` of the planted faults")
	flag.Float64Var(&o.minutes, "minutes", 4, "how long the whole run takes, about")
	flag.Uint64Var(&o.seed, "seed", 0, "of all choices; 0 draws one")
	flag.StringVar(&o.profile, "profile", "", "the nodes' `--profile` (default: lan, and wan where proxies slow every new connection down)")
	flag.StringVar(&o.network, "network", "auto", "auto, namespaces or proxies")
	flag.StringVar(&o.dir, "dir", "", "keep data and logs in this new `directory` (default: a temporary one, removed unless something was found)")
	flag.StringVar(&o.only, "only", "", "only faults whose name contains one of these, with commas between them; such a run proves nothing")
	flag.BoolVar(&o.planted, "planted", true, "also run with a planted lost write and a planted stale read, which must be found")
	flag.BoolVar(&o.once, "once", false, "stop after every fault has happened once")
	again := flag.String("recheck", "", "only judge the history in this `file`, as a run with -dir has kept it")
	flag.Parse()
	if *again != "" {
		if err := recheck(*again); err != nil {
			fmt.Fprintln(os.Stderr, "nemesis:", err)
			os.Exit(1)
		}
		return
	}
	if o.binary == "" || o.planted && o.mutant == "" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "usage: nemesis -kvmesh BINARY -mutant BINARY [-minutes N]; see scripts/nemesis.sh")
		os.Exit(2)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1_000_000) + 1
	}
	os.Exit(runMain(o))
}

func runMain(o options) int {
	inner := os.Getenv(innerEnv)
	if inner == "" && o.network != "proxies" {
		signals := make(chan os.Signal, 4)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		args := append([]string{fmt.Sprintf("-seed=%d", o.seed)}, os.Args[1:]...) // a seed that was given comes later and wins
		status, err := enter("namespaces", args, signals)
		signal.Stop(signals)
		switch {
		case err == nil && status != noNamespaces:
			return status
		case o.network == "namespaces":
			fmt.Fprintln(os.Stderr, "nemesis: FAILED: no namespaces can be had:", err)
			return 1
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	var net network = newProxies()
	if inner == "namespaces" {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "nemesis: no mounts of its own:", err)
			return noNamespaces
		}
		s, err := newSpaces()
		if err != nil {
			fmt.Fprintln(os.Stderr, "nemesis: no network of its own:", err)
			return noNamespaces
		}
		net, o.mounts = s, true
	}
	if o.profile == "" {
		if o.profile = "lan"; !o.mounts {
			o.profile = "wan"
		}
	}
	begun := time.Now()
	err := runAll(ctx, o, net)
	if cerr := net.close(); err == nil {
		err = cerr
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "nemesis: FAILED after %v (seed %d): %v\n", time.Since(begun).Round(time.Second), o.seed, err)
		return 1
	}
	return 0
}

// noNamespaces is the exit status of an inner run that cannot make its network.
const noNamespaces = 75

// environment is this process's own without settings of somebody's mesh, and with the given ones.
func environment(extra ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KVMESH_") {
			env = append(env, kv)
		}
	}
	return append(env, extra...)
}
