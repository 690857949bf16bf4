//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// networkFaults cut nodes off from each other.
func networkFaults() []fault {
	// partition makes a fault out of what is cut. Where the leader cannot be reached any more, another one must be elected
	// meanwhile.
	partition := func(name string, cut func(w *world, leader *node, others []*node) (string, error)) fault {
		return fault{name: name, family: "network", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.wires.Lock()
			defer w.wires.Unlock()
			leader, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			var others []*node
			for _, n := range w.mesh.all() {
				if n != leader {
					others = append(others, n)
				}
			}
			rng.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
			defer leader.touch()()
			what, err := cut(w, leader, others)
			length := w.hold(rng, 2*time.Second, 15*time.Second)
			if err == nil {
				pause(ctx, length)
			}
			return fmt.Sprintf("%s for %v", what, length.Round(time.Millisecond)), errors.Join(err, w.net.mend())
		}}
	}
	return []fault{
		{name: "leader cut off while its disk hangs", family: "network", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			leader, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			return w.blind(ctx, leader, w.hold(rng, 2500*time.Millisecond, 7*time.Second))
		}},
		partition("link of the leader down", func(w *world, leader *node, _ []*node) (string, error) {
			return leader.name, w.net.unplug(leader.slot)
		}),
		partition("leader cut off from all nodes", func(w *world, leader *node, others []*node) (string, error) {
			return leader.name, w.split([]*node{leader}, others, false)
		}),
		partition("one way: nothing reaches the leader", func(w *world, leader *node, others []*node) (string, error) {
			var errs []error
			for _, n := range others {
				errs = append(errs, w.net.cut(n.slot, leader.slot, false))
			}
			return leader.name, errors.Join(errs...)
		}),
		partition("one way: the leader reaches nobody", func(w *world, leader *node, others []*node) (string, error) {
			var errs []error
			for _, n := range others {
				errs = append(errs, w.net.cut(leader.slot, n.slot, false))
			}
			return leader.name, errors.Join(errs...)
		}),
		partition("one-way blackhole routes at the leader", func(w *world, leader *node, others []*node) (string, error) {
			var errs []error
			for _, n := range others {
				errs = append(errs, w.net.cut(leader.slot, n.slot, true))
			}
			return leader.name, errors.Join(errs...)
		}),
		partition("split: leader and an edge, and the others", func(w *world, leader *node, others []*node) (string, error) {
			side, rest := []*node{leader}, []*node(nil)
			for _, n := range others {
				if n.role == "edge" && len(side) == 1 {
					side = append(side, n)
				} else {
					rest = append(rest, n)
				}
			}
			return leader.name + " and " + side[len(side)-1].name, w.split(side, rest, false)
		}),
		partition("two voters cut, the third sees both", func(w *world, leader *node, others []*node) (string, error) {
			for _, n := range others {
				if n.role == "voter" {
					return leader.name + " and " + n.name, w.split([]*node{leader}, []*node{n}, false)
				}
			}
			return "", errors.New("there is only one voter")
		}),
	}
}

// split cuts every way between two sides.
func (w *world) split(a, b []*node, route bool) error {
	var errs []error
	for _, x := range a {
		for _, y := range b {
			errs = append(errs, w.net.cut(x.slot, y.slot, route), w.net.cut(y.slot, x.slot, route))
		}
	}
	return errors.Join(errs...)
}

// blind cuts a leader off from all other nodes while its syncs wait. The loop that would notice that nobody answers any
// more is the one that waits for the disk, so this leader believes to lead long after another one was elected; clients
// still reach it.
func (w *world) blind(ctx context.Context, leader *node, length time.Duration) (string, error) {
	w.wires.Lock()
	defer w.wires.Unlock()
	defer leader.touch()()
	leader.expect() // a node whose disk hangs may end itself
	t, err := w.trace(ctx, leader, syncCalls, fmt.Sprintf("delay_enter=%dms", length.Milliseconds()))
	if err != nil {
		return leader.name, err
	}
	var others []*node
	for _, n := range w.mesh.all() {
		if n != leader {
			others = append(others, n)
		}
	}
	err = w.split([]*node{leader}, others, false)
	if err == nil {
		pause(ctx, length)
	}
	err = errors.Join(err, t.stop(), w.net.mend())
	what := fmt.Sprintf("%s for %v", leader.name, length.Round(time.Millisecond))
	if _, gone := leader.gone(); gone {
		what += ", ended itself"
	}
	return what, errors.Join(err, w.restart(ctx, leader))
}
