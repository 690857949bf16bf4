//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// memberFaults change who votes, while clients write.
func memberFaults() []fault {
	return []fault{
		{name: "a voter added, and removed again", family: "members", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.members.Lock()
			defer w.members.Unlock()
			n, err := w.addVoter(ctx, rng)
			if err != nil {
				return "", err
			}
			pause(ctx, w.hold(rng, time.Second, 10*time.Second))
			return n.name, w.removeVoter(ctx, n)
		}},
		{name: "the leader removed, another voter for it", family: "members", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.members.Lock()
			defer w.members.Unlock()
			n, err := w.addVoter(ctx, rng)
			if err != nil {
				return "", err
			}
			leader, err := w.mesh.leader(ctx)
			if err != nil {
				return n.name, err
			}
			return n.name + " for " + leader.name, w.removeVoter(ctx, leader)
		}},
		{name: "a voter replaced by an empty one", family: "members", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.hurt.Lock()
			defer w.hurt.Unlock()
			w.members.Lock()
			defer w.members.Unlock()
			n, who, err := w.victim(ctx, rng)
			if err != nil {
				return "", err
			}
			return who + " " + n.name, w.replace(ctx, n)
		}},
		{name: "a removal that would lose the quorum", family: "members", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.members.Lock()
			defer w.members.Unlock()
			down, err := w.follower(ctx, rng)
			if err != nil {
				return "", err
			}
			defer down.touch()()
			if err := down.kill(); err != nil {
				return "", err
			}
			return down.name + " down", errors.Join(w.refusedRemoval(ctx, rng, down), w.restart(ctx, down))
		}},
	}
}

// memberWithin bounds one change of the membership over all its tries: other faults may be at work.
const memberWithin = 120 * time.Second

// kvmesh runs one command of the binary against a node.
func (w *world) kvmesh(ctx context.Context, n *node, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, w.mesh.binary, args...)
	cmd.Env = environment("KVMESH_URL=" + n.url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.Output()
	if exit := new(exec.ExitError); errors.As(err, &exit) {
		err = fmt.Errorf("kvmesh %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(exit.Stderr)))
	}
	return out, err
}

// member is one row of "kvmesh cluster members".
type member struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	Vote string `json:"vote"`
}

// membership asks any node that answers with the leader's word.
func (w *world) membership(ctx context.Context) ([]member, error) {
	var last error
	for _, n := range w.mesh.all() {
		ask, cancel := context.WithTimeout(ctx, 2*askTimeout)
		out, err := w.kvmesh(ask, n, "cluster", "members", "-o", "json")
		cancel()
		var doc struct {
			Members []member `json:"members"`
			Error   string   `json:"error"`
		}
		if err == nil {
			err = json.Unmarshal(out, &doc)
		}
		if err == nil && doc.Error != "" {
			err = errors.New(doc.Error)
		}
		if err == nil {
			return doc.Members, nil
		}
		last = err
	}
	return nil, last
}

// until asks who is a member until what is said pleases.
func (w *world) until(ctx context.Context, what string, pleases func([]member) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, memberWithin, fmt.Errorf("not within %v", memberWithin))
	defer cancel()
	for {
		all, err := w.membership(ctx)
		if err == nil && pleases(all) {
			return nil
		}
		if !pause(ctx, 10*poll) {
			return fmt.Errorf("%s: %w; members: %+v, %v", what, context.Cause(ctx), all, err)
		}
	}
}

func votes(all []member, id string) bool {
	return slices.ContainsFunc(all, func(m member) bool { return m.ID == id && m.Vote == "yes" })
}

// id is the node's, as its data directory has it. It is written with the node's first start.
func (n *node) id(ctx context.Context) (string, error) {
	for {
		b, err := os.ReadFile(filepath.Join(n.dir, "node-id"))
		if id := strings.TrimSpace(string(b)); err == nil && id != "" {
			return id, nil
		}
		if !pause(ctx, poll) {
			return "", fmt.Errorf("%s has no id: %w", n.name, errors.Join(context.Cause(ctx), err))
		}
	}
}

// addVoter starts a voter in a new place and waits for its vote.
func (w *world) addVoter(ctx context.Context, rng *rand.Rand) (*node, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*memberWithin, fmt.Errorf("not within %v", 2*memberWithin))
	defer cancel()
	n, err := w.mesh.lay("voter", w.nextSlots(1), regions[rng.IntN(len(regions))])
	if err != nil {
		return nil, err
	}
	n.args = append(n.args, "--join", strings.Join(seeds(w.mesh.voters(), n), ","))
	w.mesh.add(n)
	defer n.touch()()
	if err := w.restart(ctx, n); err != nil {
		return nil, err
	}
	id, err := n.id(ctx)
	if err != nil {
		return nil, err
	}
	return n, w.until(ctx, n.name+" has no vote yet", func(all []member) bool { return votes(all, id) })
}

// removeVoter takes a voter out by command, ends it, and forgets it.
func (w *world) removeVoter(ctx context.Context, n *node) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*memberWithin, fmt.Errorf("not within %v", 2*memberWithin))
	defer cancel()
	defer n.touch()()
	n.expect()
	id, err := n.id(ctx)
	if err != nil {
		return err
	}
	for {
		others := slices.DeleteFunc(w.mesh.all(), func(o *node) bool { return o == n || o.pid() == 0 })
		if len(others) == 0 {
			return errors.New("no other node runs")
		}
		_, err := w.kvmesh(ctx, others[int(w.rec.now()/int64(poll))%len(others)], "cluster", "remove", id)
		if err == nil {
			break
		}
		if !pause(ctx, 10*poll) { // other faults may be at work
			return fmt.Errorf("%s cannot be removed: %w; %w", n.name, context.Cause(ctx), err)
		}
	}
	if err := w.until(ctx, n.name+" is still a member", func(all []member) bool { return !votes(all, id) }); err != nil {
		return err
	}
	w.mesh.drop(n)
	if err := n.kill(); err != nil {
		return err
	}
	return w.discard(n)
}

// discard deletes the data of a node that is gone for good.
func (w *world) discard(n *node) error {
	if w.mesh.disk == nil {
		return os.RemoveAll(n.dir)
	}
	return syscall.Unmount(filepath.Dir(n.dir), syscall.MNT_DETACH)
}

// replace ends a voter, deletes its data, and starts it again: as a new node, which must get the old one's place.
// w.hurt is held.
func (w *world) replace(ctx context.Context, n *node) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*memberWithin, fmt.Errorf("not within %v", 2*memberWithin))
	defer cancel()
	defer n.touch()()
	if err := n.kill(); err != nil {
		return err
	}
	old, err := n.id(ctx)
	if err != nil {
		old = "" // its name was what was damaged
	}
	if err := os.RemoveAll(n.dir); err != nil {
		return err
	}
	n.reborn()
	if err := w.restart(ctx, n); err != nil {
		return err
	}
	id, err := n.id(ctx)
	if err != nil {
		return err
	}
	return w.until(ctx, n.name+" has not got its place back", func(all []member) bool {
		voters := 0
		for _, m := range all {
			if m.Vote == "yes" {
				voters++
			}
		}
		return votes(all, id) && !votes(all, old) && voters == len(w.mesh.voters())
	})
}

// reborn notes that the node's data begin anew.
func (n *node) reborn() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lives++
	n.hurt = ""
}

// refusedRemoval tries to remove a voter that runs while another one is down, which must be refused and change nothing. It
// only asks while there are three, because with more a quorum may remain.
func (w *world) refusedRemoval(ctx context.Context, rng *rand.Rand, down *node) error {
	voters := w.mesh.voters()
	if len(voters) != 3 {
		return fmt.Errorf("%d voters, three are needed for this", len(voters))
	}
	voters = slices.DeleteFunc(voters, func(n *node) bool { return n == down })
	victim, asked := voters[rng.IntN(2)], voters[rng.IntN(2)]
	id, err := victim.id(ctx)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, memberWithin)
	defer cancel()
	out, err := w.kvmesh(asking, asked, "cluster", "remove", id)
	if err == nil {
		return fmt.Errorf("%s was removed while %s was down: %s", victim.name, down.name, out)
	}
	return w.until(ctx, victim.name+" has lost its vote", func(all []member) bool { return votes(all, id) })
}
