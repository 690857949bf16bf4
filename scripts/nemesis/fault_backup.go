//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// backupFaults save the mesh while it is written to, and bring it back, elsewhere and in its place.
func backupFaults() []fault {
	return []fault{
		{name: "a backup saved", family: "backup", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			b, err := w.save(ctx, rng)
			if err != nil {
				return "", err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.backups = append(w.backups, b)
			return fmt.Sprintf("revision %d through %s", b.revision, b.from), nil
		}},
		{name: "a backup restored into another mesh", family: "backup", last: true, inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.mu.Lock()
			backups := w.backups
			w.mu.Unlock()
			if len(backups) == 0 {
				return "", errors.New("no backup was saved")
			}
			return w.elsewhere(ctx, rng, backups[rng.IntN(len(backups))])
		}},
		{name: "a backup restored over the mesh", family: "backup", last: true, inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			return w.back(ctx, rng)
		}},
	}
}

// saved backup: what it says of itself, and when it was asked for.
type backup struct {
	file, from string
	revision   uint64
	begun      int64
}

const (
	// backupWithin bounds one command over all its tries.
	backupWithin = 120 * time.Second
	// laterWrites are made after a backup that is to be restored over the mesh: they must be gone then.
	laterWrites = 20
)

// save makes a backup through a node that answers.
func (w *world) save(ctx context.Context, rng *rand.Rand) (backup, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, backupWithin, fmt.Errorf("not within %v", backupWithin))
	defer cancel()
	for {
		nodes := w.mesh.all()
		n := nodes[rng.IntN(len(nodes))]
		b := backup{
			file: filepath.Join(w.mesh.dir, fmt.Sprintf("backup-%d", w.rec.now())), from: n.name, begun: w.rec.now(),
		}
		out, err := w.kvmesh(ctx, n, "backup", "save", b.file, "-o", "json")
		var doc struct {
			Revision uint64 `json:"revision"`
		}
		if err == nil {
			err = json.Unmarshal(out, &doc)
		}
		if b.revision = doc.Revision; err == nil {
			return b, nil
		}
		if !pause(ctx, 10*poll) { // other faults may be at work
			return b, fmt.Errorf("no backup can be saved: %w; %w", context.Cause(ctx), err)
		}
	}
}

// elsewhere restores a backup into a new mesh, of another size, with another key, and holds every key against the history:
// it must be as it was at the backup's revision.
func (w *world) elsewhere(ctx context.Context, rng *rand.Rand, b backup) (_ string, err error) {
	voters := 1 + 2*rng.IntN(2)
	what := fmt.Sprintf("revision %d, into %d voters and an edge", b.revision, voters)
	rec := newRecorder()
	m := &mesh{
		binary: w.mesh.binary, dir: filepath.Join(w.mesh.dir, "elsewhere"), profile: w.mesh.profile, env: w.mesh.env, net: w.net,
		call: newCaller(rec),
	}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		return what, err
	}
	if err := m.newKey(ctx); err != nil {
		return what, err
	}
	if err := m.layout(voters, 1, w.nextSlots(voters+1)); err != nil {
		return what, err
	}
	defer func() { err = errors.Join(err, m.kill()) }()
	if err := m.start(ctx); err != nil {
		return what, err
	}
	other := &session{world: &world{mesh: m, net: w.net, rec: rec, call: m.call, opts: w.opts}}
	nodes := m.all()
	if _, err := other.kvmesh(ctx, nodes[rng.IntN(len(nodes))], "backup", "restore", b.file, "--yes", "--source-mesh-key", w.mesh.key); err != nil {
		return what, err
	}
	history := w.rec.history()
	var bad []string
	if newest := newestBefore(history, b.begun); newest > b.revision {
		bad = append(bad, fmt.Sprintf("revision %d had been acknowledged before the backup was asked for", newest))
	}
	for key, want := range stateAt(history, b.revision) {
		for _, n := range nodes {
			o, err := other.readOnce(ctx, n, key, n.role == "edge", "")
			if err != nil {
				return what, err
			}
			if got := o.keys[key[1]].value; !want.allows(got) {
				bad = append(bad, fmt.Sprintf("%s at %s is value %d, it was %v", keyName(key[0], key[1]), n.name, got, want))
			}
		}
	}
	if len(bad) > 0 {
		return what, fmt.Errorf("the restored mesh is not what was saved:\n  %s", strings.Join(bad, "\n  "))
	}
	return what, nil
}

// expected is what a key may have been at some revision.
type expected struct {
	value uint32          // of the newest acknowledged write up to then, 0 for none
	maybe map[uint32]bool // written with unknown outcome, or removed (0): it may have been one of these as well
}

func (e expected) allows(value uint32) bool { return value == e.value || e.maybe[value] }

func (e expected) String() string {
	return fmt.Sprintf("value %d or perhaps one of %d others", e.value, len(e.maybe))
}

// stateAt tells every key's state at a revision, from what was acknowledged. Writes whose answer was lost, and that no read
// has shown with a revision, may have been before or after it.
func stateAt(history []*op, revision uint64) map[[2]int]expected {
	state, best := make(map[[2]int]expected), make(map[[2]int]uint64)
	known := make(map[[2]int]map[uint32]uint64) // the revisions of values that were read
	for _, o := range history {
		for i, t := range o.keys {
			key := [2]int{o.pair, i}
			if t.does == look && t.value != 0 {
				if known[key] == nil {
					known[key] = make(map[uint32]uint64)
				}
				known[key][t.value] = t.rev
			}
		}
	}
	for _, o := range history {
		for i, t := range o.keys {
			key := [2]int{o.pair, i}
			if t.does != write && t.does != remove || o.outcome == refused || o.outcome == conflict {
				continue
			}
			e, ok := state[key]
			if !ok {
				e.maybe = make(map[uint32]bool)
			}
			rev := t.rev
			if o.outcome == unknown && t.does == write {
				rev = known[key][t.value]
			}
			switch {
			case o.outcome == unknown && rev == 0:
				e.maybe[t.value] = true
			case rev != 0 && rev <= revision && rev > best[key]:
				best[key], e.value = rev, t.value
			}
			state[key] = e
		}
	}
	return state
}

// newestBefore is the highest revision that was acknowledged before t.
func newestBefore(history []*op, t int64) uint64 {
	var newest uint64
	for _, o := range history {
		if o.outcome == done && o.isWrite() && o.ret < t {
			newest = max(newest, order(o))
		}
	}
	return newest
}

// back saves the mesh, which nobody writes to any more, changes it, and restores it in its place: every node must show what
// was saved and nothing of what came later, without being told.
func (w *world) back(ctx context.Context, rng *rand.Rand) (string, error) {
	s := &session{world: &world{mesh: w.mesh, net: w.net, rec: newRecorder(), opts: w.opts}}
	s.call = newCaller(s.rec)
	b, err := s.save(ctx, rng)
	if err != nil {
		return "", err
	}
	what := fmt.Sprintf("revision %d", b.revision)
	want := make(map[[2]int]uint32)
	nodes := w.mesh.all()
	for key := range stateAt(w.rec.history(), b.revision) {
		o, err := s.readOnce(ctx, nodes[0], key, false, "")
		if err != nil {
			return what, err
		}
		want[key] = o.keys[key[1]].value
	}
	if err := s.disturb(ctx, want); err != nil {
		return what, err
	}
	if _, err := w.kvmesh(ctx, nodes[rng.IntN(len(nodes))], "backup", "restore", b.file, "--yes", "--replace"); err != nil {
		return what, err
	}
	var bad []string
	for _, n := range nodes {
		for key, value := range want {
			o, err := s.readOnce(ctx, n, key, n.role == "edge" && !lagging(ctx, s, n, key, value), "")
			if err != nil {
				return what, err
			}
			if got := o.keys[key[1]].value; got != value {
				bad = append(bad, fmt.Sprintf("%s at %s is value %d, %d was restored", keyName(key[0], key[1]), n.name, got, value))
			}
		}
	}
	if len(bad) > 0 {
		return what, fmt.Errorf("the mesh is not what was restored:\n  %s", strings.Join(bad, "\n  "))
	}
	return fmt.Sprintf("%s, %d keys at %d nodes", what, len(want), len(nodes)), nil
}

// lagging waits until an edge has heard of the new epoch, which takes as long as its next word from the voters.
func lagging(ctx context.Context, s *session, n *node, key [2]int, value uint32) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*askTimeout)
	defer cancel()
	for {
		o, err := s.readOnce(ctx, n, key, true, "")
		if err != nil || o.keys[key[1]].value == value {
			return err != nil
		}
		if !pause(ctx, poll) {
			return false // and the read that follows shows it
		}
	}
}

// disturb changes some keys after a backup.
func (s *session) disturb(ctx context.Context, keys map[[2]int]uint32) error {
	left := laterWrites
	for key := range maps.Keys(keys) {
		if left--; left < 0 {
			return nil
		}
		o := &op{client: clients + 2, pair: key[0], node: "disturb"}
		o.keys[key[1]].does = write
		s.rec.begin(o)
		s.call.write(ctx, o, s.mesh.all()[left%len(s.mesh.all())].url, key[1], "", 0)
		s.rec.end(o)
		if o.outcome != done {
			return fmt.Errorf("after the backup: %v", o)
		}
	}
	return nil
}

// nextSlots takes n places in the network and returns the first.
func (w *world) nextSlots(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.slots + 1
	w.slots += n
	return first
}
