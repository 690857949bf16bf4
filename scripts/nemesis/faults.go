//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// fault is one kind of thing that goes wrong.
type fault struct {
	name   string
	family string
	// inject does it, holds it for a while and undoes it. It returns what it did, for the log.
	inject func(ctx context.Context, w *world, rng *rand.Rand) (string, error)
	// stops says that it takes the quorum away, so that writes must stop meanwhile.
	stops bool
	// alone says that it must not be mixed with others.
	alone bool
	// last says that it comes when everything else is over and nobody writes any more.
	last bool
}

// event is one fault that happened.
type event struct {
	name, what string
	// Of the recorder's clock: when it began, when it was undone, and when every node was ready and a write was
	// acknowledged that was sent after that.
	begin, undone, back int64
	gap                 time.Duration // the longest time without an acknowledged write from begin to back
	mixed               bool
	err                 error
}

// catalogue is every fault. Each must happen in every run.
func catalogue() []fault {
	var all []fault
	for _, family := range [][]fault{processFaults(), diskFaults(), networkFaults(), memberFaults(), damageFaults(), backupFaults()} {
		all = append(all, family...)
	}
	return all
}

// world is what faults work on.
type world struct {
	mesh *mesh
	net  network
	rec  *recorder
	call *caller
	opts options

	mu     sync.Mutex // guards all below
	events []event
	slots  int // the highest that is taken
	// backups are those that were saved, oldest first.
	backups []backup
	// hurt is held by the fault that damages, empties or hides a voter's data: one voter at a time.
	hurt sync.Mutex
	// members is held by what changes who votes.
	members sync.Mutex
	// wires is held by the fault that cuts the network, because cuts are mended all at once.
	wires sync.Mutex
}

// settleWithin bounds the time from the end of a fault until the mesh is whole again.
const settleWithin = 120 * time.Second

// hold is how long a fault lasts.
func (w *world) hold(rng *rand.Rand, least, most time.Duration) time.Duration {
	most = max(least, time.Duration(float64(most)*w.opts.scale()))
	return least + rand.N(most-least+1) + 0*time.Duration(rng.Int64())
}

// strike injects one fault, waits until the mesh is whole again and keeps what was measured.
func (w *world) strike(ctx context.Context, f fault, rng *rand.Rand, mixed bool) event {
	e := event{name: f.name, begin: w.rec.now(), mixed: mixed}
	e.what, e.err = f.inject(ctx, w, rng)
	e.undone = w.rec.now()
	if e.err == nil && !mixed && !f.last {
		e.err = w.settle(ctx)
	}
	e.back = w.rec.now()
	if !f.last {
		e.gap = w.rec.longestGap(e.begin, e.back)
	}
	w.mu.Lock()
	w.events = append(w.events, e)
	w.mu.Unlock()
	return e
}

// settle waits until every node is ready, every voter has what the leader has, and a write that was sent after that is
// acknowledged.
func (w *world) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleWithin, fmt.Errorf("not within %v", settleWithin))
	defer cancel()
	for {
		err := w.mesh.ready(ctx)
		if err == nil {
			break
		}
		revived, rerr := w.revive(ctx)
		if err := errors.Join(err, rerr); !revived || rerr != nil {
			return fmt.Errorf("the mesh is not whole again: %w", err)
		}
	}
	if err := w.mesh.level(ctx); err != nil {
		return fmt.Errorf("the mesh is not whole again: %w", err)
	}
	since := w.rec.now()
	for !w.rec.ackedSince(since) {
		if !pause(ctx, poll) {
			return fmt.Errorf("no write is acknowledged any more: %w", context.Cause(ctx))
		}
	}
	return nil
}

// revive starts the nodes again that were allowed to end and have, as a supervisor would do, and replaces those that have
// found only now that their files were damaged.
func (w *world) revive(ctx context.Context) (bool, error) {
	revived := false
	for _, n := range w.mesh.all() {
		if _, gone := n.gone(); !gone {
			continue
		}
		if n.damaged() != "" {
			fmt.Printf("          %s has ended by itself (%s) and is replaced\n", n.name, n.damaged())
			w.hurt.Lock()
			err := w.replace(ctx, n)
			w.hurt.Unlock()
			if err != nil {
				return true, err
			}
			revived = true
		} else if n.crashed() == nil {
			if err := w.restart(ctx, n); err != nil {
				return true, err
			}
			revived = true
		}
	}
	return revived, nil
}

// restart starts a node again and waits until it is ready.
func (w *world) restart(ctx context.Context, n *node) error {
	if err := n.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not within %v", readyWithin))
	defer cancel()
	return w.mesh.waitReady(ctx, n)
}

// follower picks a voter that does not lead.
func (w *world) follower(ctx context.Context, rng *rand.Rand) (*node, error) {
	leader, err := w.mesh.leader(ctx)
	if err != nil {
		return nil, err
	}
	var rest []*node
	for _, n := range w.mesh.voters() {
		if n != leader && n.pid() != 0 {
			rest = append(rest, n)
		}
	}
	if len(rest) == 0 {
		return nil, fmt.Errorf("no voter but %s runs", leader.name)
	}
	return rest[rng.IntN(len(rest))], nil
}

// victim picks the voter whose data are hurt next. While one has damaged files that nobody has found yet, it is that one:
// two of three copies may not be hurt at a time. w.hurt is held.
func (w *world) victim(ctx context.Context, rng *rand.Rand) (*node, string, error) {
	for _, n := range w.mesh.voters() {
		if n.damaged() != "" {
			return n, "the damaged", nil
		}
	}
	return w.either(ctx, rng)
}

// either picks the leader or a follower.
func (w *world) either(ctx context.Context, rng *rand.Rand) (*node, string, error) {
	if rng.IntN(2) == 0 {
		n, err := w.mesh.leader(ctx)
		return n, "the leader", err
	}
	n, err := w.follower(ctx, rng)
	return n, "a follower", err
}
