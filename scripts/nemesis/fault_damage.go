//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

// damageFaults flip a bit in a stopped voter's files. It must be found or be harmless, and never be served; the voter comes
// back by itself or says what to do.
func damageFaults() []fault {
	flip := func(name string, in func(path string) bool) fault {
		return fault{name: name, family: "damage", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			w.hurt.Lock()
			defer w.hurt.Unlock()
			w.members.Lock()
			defer w.members.Unlock()
			n, who, err := w.victim(ctx, rng)
			if err != nil {
				return "", err
			}
			what, err := w.damage(ctx, rng, n, in)
			return who + " " + n.name + ": " + what, err
		}}
	}
	under := func(parts ...string) func(string) bool {
		return func(path string) bool {
			for _, p := range parts {
				if strings.HasPrefix(path, p) {
					return true
				}
			}
			return false
		}
	}
	log, state, blobs := under("store/raft.db", "store/vote"), under("store/state"), under("blobs/")
	return []fault{
		flip("a bit flipped in the log", log),
		flip("a bit flipped in the state", state),
		flip("a bit flipped in a large value", blobs),
		flip("a bit flipped in another file", func(path string) bool { return !log(path) && !state(path) && !blobs(path) }),
	}
}

// damage kills a voter, flips one bit in one of its files and starts it again.
func (w *world) damage(ctx context.Context, rng *rand.Rand, n *node, in func(path string) bool) (string, error) {
	defer n.touch()()
	if err := n.kill(); err != nil {
		return "", err
	}
	what, err := flipBit(rng, n.dir, in)
	if err != nil {
		return what, errors.Join(err, w.restart(ctx, n))
	}
	if err := n.start(); err != nil {
		return what, err
	}
	n.expect() // it may find the damage at once, or when it reads what was damaged
	n.hurtBy(what)
	if err := w.restart(ctx, n); err == nil {
		return what + ", came back", nil
	} else if _, gone := n.gone(); !gone {
		return what, err
	}
	return what + ", refused to start, was replaced", w.replace(ctx, n)
}

// hurtBy notes what was damaged in the node's files, so that it may end when it finds it; "" when its data begin anew.
func (n *node) hurtBy(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hurt = what
}

// damaged is what was damaged in the node's files, "" when nothing was.
func (n *node) damaged() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hurt
}

// flipBit flips one bit of one file below dir that in accepts: each file has the same chance, however large it is. It looks
// for a byte that is not zero, because large parts of some files are not in use.
func flipBit(rng *rand.Rand, dir string, in func(path string) bool) (string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Size() > 0 && in(filepath.ToSlash(rel)) {
			files = append(files, rel)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	if len(files) == 0 {
		return "", errors.New("there is no such file yet")
	}
	name := files[rng.IntN(len(files))]
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		return name, err
	}
	at := rng.IntN(len(b))
	for range 1000 {
		if b[at] != 0 {
			break
		}
		at = rng.IntN(len(b))
	}
	bit := rng.IntN(8)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return name, err
	}
	_, err = f.WriteAt([]byte{b[at] ^ 1<<bit}, int64(at))
	return fmt.Sprintf("bit %d of byte %d of %d in %s", bit, at, len(b), name), errors.Join(err, f.Close())
}
