//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// node is one process of the mesh. Its place, its addresses and its arguments stay the same over its lives.
type node struct {
	slot        int
	name, role  string
	dir         string // data
	url, admin  string
	args        []string
	logPath     string
	binary      string
	environment []string
	net         network

	mu       sync.Mutex // guards all below
	cmd      *exec.Cmd
	exited   chan struct{} // closed when the present process has ended and was waited for
	exitErr  error         // of that process; valid once exited is closed
	exitedAt time.Time
	expected bool // the process may end: somebody ends it, or has broken its disk
	upset    int  // how many faults touch this node now
	lives    int  // how often its data were begun anew
	hurt     string
}

// start starts the node's process unless it runs.
func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.running() {
		return nil
	}
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own descriptor
	cmd := n.net.command(n.slot, n.binary, n.args...)
	cmd.Env = n.environment
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	exited := make(chan struct{})
	n.cmd, n.exited, n.expected = cmd, exited, false
	n.net.started(n.slot, cmd.Process.Pid)
	go func() { // ends with the process; kill waits for it
		err := cmd.Wait()
		n.mu.Lock()
		n.exitErr, n.exitedAt = err, time.Now()
		n.mu.Unlock()
		close(exited)
	}()
	return nil
}

// running says whether a process runs; n.mu is held.
func (n *node) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// gone returns why the process has ended, if it has.
func (n *node) gone() (error, bool) { //nolint:staticcheck // the error is the finding, not this function's
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil || n.running() {
		return nil, n.cmd == nil
	}
	return fmt.Errorf("%w; its log ends:\n%s", orNil(n.exitErr), tail(n.logPath, 1500)), true
}

func orNil(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// crashed returns why the process has ended, if it has and nobody expected it.
func (n *node) crashed() error {
	n.mu.Lock()
	expected := n.expected || n.cmd == nil
	n.mu.Unlock()
	if err, gone := n.gone(); gone && !expected {
		return fmt.Errorf("%s ended by itself: %w", n.name, err)
	}
	return nil
}

// pid of the process; 0 when none runs.
func (n *node) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return 0
	}
	return n.cmd.Process.Pid
}

// signal sends a signal to the process.
func (n *node) signal(sig syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.running() {
		return nil
	}
	if err := n.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v to %s: %w", sig, n.name, err)
	}
	return nil
}

// expect says that the process may end from now on, until it is started again.
func (n *node) expect() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expected = true
}

// kill ends the process with SIGKILL and waits for it.
func (n *node) kill() error {
	n.expect()
	if err := n.signal(syscall.SIGKILL); err != nil {
		return err
	}
	n.mu.Lock()
	exited := n.exited
	n.mu.Unlock()
	if exited != nil {
		<-exited // SIGKILL cannot be refused
	}
	return nil
}

// waitExit waits until the process has ended and returns when that was.
func (n *node) waitExit(ctx context.Context) (time.Time, error) {
	n.mu.Lock()
	exited := n.exited
	n.mu.Unlock()
	select {
	case <-exited:
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%s has not ended: %w", n.name, context.Cause(ctx))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.exitedAt, nil
}

// life names the node together with how often its data were begun anew: another life knows nothing of what it has shown.
func (n *node) life() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lives == 0 {
		return n.name
	}
	return fmt.Sprintf("%s'%d", n.name, n.lives)
}

// touch marks the node as one that a fault works on, for as long as the returned function is not called.
func (n *node) touch() func() {
	n.mu.Lock()
	n.upset++
	n.mu.Unlock()
	return func() {
		n.mu.Lock()
		n.upset--
		n.mu.Unlock()
	}
}

func (n *node) touched() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.upset > 0
}
