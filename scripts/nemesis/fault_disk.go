//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// diskBytes is the size of a voter's own disk, where one can be mounted.
const diskBytes = 512 << 20

// hang is how long each sync of a disk that hangs takes: much longer than a node may wait for one. strace holds a process
// whose thread it delays, so it takes as long until a node that has ended can be seen to have.
const hang = 15 * time.Second

// hangLimit is how soon the leader has to end: raftstore's watchdog does it after 8 s.
const hangLimit = 10 * time.Second

// diskFaults make the disk of a voter fail, wait, or fill up.
func diskFaults() []fault {
	return []fault{
		{name: "fsync returns EIO", family: "disk", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			return w.ends(ctx, rng, "error=EIO", 5*time.Second)
		}},
		{name: "fsync returns ENOSPC", family: "disk", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			return w.suffers(ctx, rng, syncCalls, "error=ENOSPC", true, w.hold(rng, 2*time.Second, 10*time.Second))
		}},
		{name: "fsync is slow", family: "disk", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			delay := 50 + rng.IntN(400)
			what, err := w.suffers(ctx, rng, syncCalls, fmt.Sprintf("delay_enter=%dms", delay), false, w.hold(rng, 3*time.Second, 10*time.Second))
			return fmt.Sprintf("%s, %d ms each", what, delay), err
		}},
		{name: "fsync of the leader hangs", family: "disk", inject: func(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
			n, err := w.mesh.leader(ctx)
			if err != nil {
				return "", err
			}
			return w.endsOn(ctx, n, "delay_enter="+hang.String(), hangLimit)
		}},
		{name: "disk full", family: "disk", inject: diskFull},
	}
}

// endWithin bounds the wait for a node that has to end by itself; how soon it should have ended is judged afterwards, from
// the moment of the first call that was made to fail.
const endWithin = time.Minute

// ends makes the syncs of a voter fail so that it has to end by itself.
func (w *world) ends(ctx context.Context, rng *rand.Rand, inject string, within time.Duration) (string, error) {
	n, who, err := w.either(ctx, rng)
	if err != nil {
		return "", err
	}
	what, err := w.endsOn(ctx, n, inject, within)
	return who + " " + what, err
}

func (w *world) endsOn(ctx context.Context, n *node, inject string, within time.Duration) (string, error) {
	defer n.touch()()
	n.expect()
	t, err := w.trace(ctx, n, syncCalls, inject)
	if err != nil {
		return n.name, err
	}
	wait, cancel := context.WithTimeoutCause(ctx, endWithin, fmt.Errorf("%v after its syncs began to fail with %s", endWithin, inject))
	defer cancel()
	at, err := n.waitExit(wait)
	if err = errors.Join(err, t.stop()); err != nil {
		return n.name, errors.Join(err, n.kill(), w.restart(ctx, n))
	}
	first, ok := t.first()
	if !ok {
		return n.name, fmt.Errorf("%s ended, but no sync had been made to fail", n.name)
	}
	if ended, ok := t.ended(); ok && ended.Before(at) {
		at = ended
	}
	what := fmt.Sprintf("%s ended %v after the first", n.name, at.Sub(first).Round(time.Millisecond))
	if at.Sub(first) > within {
		return what, fmt.Errorf("it took %v to end, at most %v are good", at.Sub(first), within)
	}
	return what, w.restart(ctx, n)
}

// suffers makes calls of a voter fail or wait for a while. A node that ends itself meanwhile is started again, as a
// supervisor would do, when mayEnd; else it must live through it.
func (w *world) suffers(ctx context.Context, rng *rand.Rand, calls, inject string, mayEnd bool, length time.Duration) (string, error) {
	n, who, err := w.either(ctx, rng)
	if err != nil {
		return "", err
	}
	defer n.touch()()
	what := fmt.Sprintf("%s %s for %v", who, n.name, length.Round(time.Millisecond))
	if mayEnd {
		n.expect()
	}
	t, err := w.trace(ctx, n, calls, inject)
	if err != nil {
		return what, err
	}
	pause(ctx, length)
	if err := t.stop(); err != nil {
		return what, err
	}
	if _, ok := t.first(); !ok {
		return what, fmt.Errorf("%s made none of the calls %s in %v", n.name, calls, length)
	}
	if _, gone := n.gone(); gone && mayEnd {
		return what + ", ended itself", w.restart(ctx, n)
	}
	return what, nil
}

// diskFull fills the disk of a voter, holds it full and frees it again.
func diskFull(ctx context.Context, w *world, rng *rand.Rand) (string, error) {
	length := w.hold(rng, 3*time.Second, 15*time.Second)
	if w.mesh.disk == nil {
		what, err := w.suffers(ctx, rng, "write,pwrite64,fallocate,ftruncate,"+syncCalls, "error=ENOSPC", true, length)
		return "injected, no disk can be mounted: " + what, err
	}
	n, who, err := w.either(ctx, rng)
	if err != nil {
		return "", err
	}
	defer n.touch()()
	n.expect()
	filler := filepath.Join(filepath.Dir(n.dir), "filler")
	filled, err := fill(filler)
	if err == nil {
		pause(ctx, length)
	}
	what := fmt.Sprintf("%s %s: %d MiB filled for %v", who, n.name, filled>>20, length.Round(time.Millisecond))
	if err := errors.Join(err, os.Remove(filler)); err != nil {
		return what, err
	}
	// There is one state of the log in which it cannot wait for space; see raftstore's watchedLog.
	if why, gone := n.gone(); gone && strings.Contains(why.Error(), "was cut back to entry") {
		return what + ", ended itself because its log was cut", w.restart(ctx, n)
	} else if gone {
		return what, fmt.Errorf("%s ended by itself: %w", n.name, why)
	}
	return what, nil
}

// fill writes a file until nothing more fits onto its disk.
func fill(path string) (filled int64, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for step := int64(16 << 20); step >= 4096; {
		if err := syscall.Fallocate(int(f.Fd()), 0, filled, step); errors.Is(err, syscall.ENOSPC) {
			step /= 2
			continue
		} else if err != nil {
			return filled, err
		}
		filled += step
	}
	return filled, nil
}

// disks mounts a small disk for each voter below dir. It needs a mount namespace of this program's own; nil when nothing
// can be mounted.
func disks(dir string) func(name string) (string, error) {
	probe := filepath.Join(dir, "disk-probe")
	if err := mountDisk(probe); err != nil {
		return nil
	}
	if err := syscall.Unmount(probe, 0); err != nil {
		return nil
	}
	return func(name string) (string, error) {
		at := filepath.Join(dir, "disk-"+name)
		return at, mountDisk(at)
	}
}

// unmountDisks takes away the disks of the meshes below dir.
func unmountDisks(dir string) error {
	disks, err := filepath.Glob(filepath.Join(dir, "*", "disk-*"))
	if err != nil {
		return err
	}
	for _, at := range disks {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) { // the latter is no disk
			return err
		}
	}
	return nil
}

func mountDisk(at string) error {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", at, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", diskBytes)); err != nil {
		return fmt.Errorf("mount a tmpfs at %s: %w", at, err)
	}
	return nil
}
