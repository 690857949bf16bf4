//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// tracer is strace on a running node: it makes chosen system calls fail or wait.
type tracer struct {
	cmd    *exec.Cmd
	out    string
	exited chan struct{} // closed once strace has ended and was waited for
}

// syncCalls are all calls by which the libraries make data durable; which one differs from library to library.
const syncCalls = "fsync,fdatasync"

// attachWithin bounds how long strace may take to stop all threads of a node once.
const attachWithin = 30 * time.Second

// trace attaches strace to a node; inject is its expression, for example "error=EIO". It returns once strace is at work.
func (w *world) trace(ctx context.Context, n *node, calls, inject string) (*tracer, error) {
	pid := n.pid()
	if pid == 0 {
		return nil, fmt.Errorf("%s does not run", n.name)
	}
	t := &tracer{out: filepath.Join(w.mesh.dir, n.name+".strace"), exited: make(chan struct{})}
	if err := os.Remove(t.out); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	t.cmd = exec.Command("strace", "-f", "-ttt", "-p", strconv.Itoa(pid), "-e", "trace="+calls, "-e", "signal=none",
		"-e", "inject="+calls+":"+inject, "-o", t.out)
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	said, err := t.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	attached := make(chan string, 1)
	go func() {
		defer close(t.exited)
		var all strings.Builder
		for s := bufio.NewScanner(said); s.Scan(); {
			if all.Len() < 4096 {
				all.WriteString(s.Text() + "\n")
			}
			if strings.Contains(s.Text(), " attached") {
				select {
				case attached <- "":
				default:
				}
			}
		}
		_ = t.cmd.Wait() // its status is the traced process's, or the signal that ended it
		select {
		case attached <- all.String():
		default:
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, attachWithin)
	defer cancel()
	select {
	case why := <-attached:
		if why != "" {
			return nil, fmt.Errorf("strace cannot be attached to %s: %s", n.name, strings.TrimSpace(why))
		}
		return t, nil
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("strace has not attached to %s: %w", n.name, ctx.Err()), t.stop())
	}
}

// stop lets go of the node.
func (t *tracer) stop() error {
	if err := t.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-t.exited:
		return nil
	case <-time.After(attachWithin):
	}
	err := t.cmd.Process.Kill()
	<-t.exited
	return err
}

// first is when the first call was made to fail or wait; false when none was. A call that waited until its process had ended
// has no result ("?"), and is not marked.
func (t *tracer) first() (at time.Time, ok bool) {
	begun := make(map[string]time.Time) // calls under way whose line another thread's has interrupted, by thread
	err := t.lines(func(thread string, when time.Time, rest string) bool {
		switch {
		case strings.Contains(rest, "(INJECTED)"), strings.Contains(rest, "(DELAYED)"):
			at, ok = when, true
		case strings.HasSuffix(rest, "<unfinished ...>"):
			begun[thread] = when
		case strings.HasSuffix(rest, "= ?"):
			if at, ok = begun[thread]; !ok {
				at, ok = when, true
			}
		}
		return !ok
	})
	return at, ok && err == nil
}

// ended is when the process ended, which shows later where a thread of it is held.
func (t *tracer) ended() (at time.Time, ok bool) {
	err := t.lines(func(_ string, when time.Time, rest string) bool {
		at, ok = when, strings.HasPrefix(rest, "+++ exited") || strings.HasPrefix(rest, "+++ killed")
		return !ok
	})
	return at, ok && err == nil
}

// lines calls fn with what strace has written, until it returns false.
func (t *tracer) lines(fn func(thread string, when time.Time, rest string) bool) (err error) {
	f, err := os.Open(t.out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	s := bufio.NewScanner(f)
	for s.Scan() {
		thread, rest, _ := strings.Cut(s.Text(), " ") // thread ids are padded to five digits
		when, rest, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		at, err := strconv.ParseFloat(when, 64)
		if err == nil && !fn(thread, time.UnixMicro(int64(at*1e6)), rest) {
			return nil
		}
	}
	return s.Err()
}
