//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"
)

// processFaults end and freeze processes.
func processFaults() []fault {
	return []fault{
		{name: "SIGKILL of a follower", family: "process", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			n, err := w.follower(ctx, rng)
			if err != nil {
				return "", err
			}
			return w.killed(ctx, rng, n)
		}},
		{name: "SIGKILL of the leader", family: "process", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			n, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			return w.killed(ctx, rng, n)
		}},
		{name: "SIGKILL of an edge", family: "process", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			var edges []*node
			for _, n := range w.mesh.all() {
				if n.role == "edge" {
					edges = append(edges, n)
				}
			}
			return w.killed(ctx, rng, edges[rng.IntN(len(edges))])
		}},
		{name: "SIGKILL of all voters", family: "process", stops: true, inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			return w.killed(ctx, rng, w.mesh.voters()...)
		}},
		{name: "SIGKILL of all nodes", family: "process", stops: true, inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			return w.killed(ctx, rng, w.mesh.all()...)
		}},
		{name: "SIGSTOP of the leader", family: "process", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			n, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			return w.frozen(ctx, n, w.hold(rng, 1500*time.Millisecond, 30*time.Second))
		}},
		{name: "SIGTERM of the leader", family: "process", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			n, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			defer n.touch()()
			n.expect()
			if err := n.signal(syscall.SIGTERM); err != nil {
				return "", err
			}
			wait, cancel := context.WithTimeoutCause(ctx, readyWithin, errors.New("after SIGTERM"))
			defer cancel()
			if _, err := n.waitExit(wait); err != nil {
				return "", err
			}
			return n.name, w.restart(ctx, n)
		}},
	}
}

// killed ends nodes all at once and starts them again after a while.
func (w *world) killed(ctx context.Context, rng *rand.Rand, nodes ...*node) (string, error) {
	what := ""
	for _, n := range nodes {
		defer n.touch()()
		n.expect()
		what += n.name + " "
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, n.signal(syscall.SIGKILL))
	}
	for _, n := range nodes {
		errs = append(errs, n.kill())
	}
	down := w.hold(rng, 200*time.Millisecond, 4*time.Second)
	pause(ctx, down)
	for _, n := range nodes {
		errs = append(errs, n.start())
	}
	for _, n := range nodes {
		if err := errors.Join(errs...); err != nil {
			return what, err
		}
		errs = append(errs, w.restart(ctx, n))
	}
	return fmt.Sprintf("%sdown for %v", what, down.Round(time.Millisecond)), errors.Join(errs...)
}

// frozen stops a process for a while.
func (w *world) frozen(ctx context.Context, n *node, length time.Duration) (string, error) {
	defer n.touch()()
	if err := n.signal(syscall.SIGSTOP); err != nil {
		return "", err
	}
	pause(ctx, length)
	return fmt.Sprintf("%s for %v", n.name, length.Round(time.Millisecond)), n.signal(syscall.SIGCONT)
}
