//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var regions = []string{"us-east", "eu-west", "ap-south"}

const (
	// readyWithin bounds how long nodes may take from their start until /readyz is 200. It is generous: the machine may be
	// busy with other things, and it only ends runs that would never go on.
	readyWithin = 120 * time.Second
	// askTimeout bounds a question to an admin listener.
	askTimeout = 3 * time.Second
	poll       = 20 * time.Millisecond
)

// mesh is the processes. It is safe for concurrent use.
type mesh struct {
	binary, dir, key, profile string
	env                       []string
	net                       network
	call                      *caller
	disk                      func(name string) (string, error) // makes the directory that a voter's data lie in

	mu    sync.Mutex // guards nodes
	nodes []*node
}

// newKey makes the mesh key.
func (m *mesh) newKey(ctx context.Context) error {
	m.key = filepath.Join(m.dir, "mesh.key")
	cmd := exec.CommandContext(ctx, m.binary, "mesh-key", "new")
	cmd.Env = environment()
	key, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("mesh-key new: %w", err)
	}
	return os.WriteFile(m.key, key, 0o600)
}

// layout makes the nodes of a mesh without starting them.
func (m *mesh) layout(voters, edges, firstSlot int) error {
	var all []*node
	for i := range voters + edges {
		role := "voter"
		if i >= voters {
			role = "edge"
		}
		n, err := m.lay(role, firstSlot+i, regions[i%voters%len(regions)])
		if err != nil {
			return err
		}
		all = append(all, n)
	}
	for _, n := range all {
		if voters > 1 || n.role != "voter" {
			n.args = append(n.args, "--join", strings.Join(seeds(all, n), ","))
		}
		if n.role == "voter" {
			n.args = append(n.args, "--bootstrap-expect", strconv.Itoa(voters))
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes = append(m.nodes, all...)
	return nil
}

// lay makes one node, without seeds.
func (m *mesh) lay(role string, slot int, region string) (*node, error) {
	if err := m.net.join(slot); err != nil {
		return nil, err
	}
	n := &node{
		slot: slot, name: fmt.Sprintf("%s-%d", role, slot), role: role, binary: m.binary, environment: m.env, net: m.net,
	}
	n.logPath = filepath.Join(m.dir, n.name+".log")
	base := m.dir
	if role == "voter" && m.disk != nil {
		var err error
		if base, err = m.disk(n.name); err != nil {
			return nil, err
		}
	}
	n.dir = filepath.Join(base, n.name)
	at := func(port int) string { return net.JoinHostPort(m.net.listen(slot), strconv.Itoa(port)) }
	n.url, n.admin = "http://"+at(8580), "http://"+at(8583)
	n.args = []string{
		"serve", "--name", n.name, "--role", role, "--region", region, "--data-dir", n.dir, "--mesh-key", m.key,
		"--http", at(8580), "--peer", at(peerPort), "--gossip", at(gossipPort), "--admin", at(8583),
		"--advertise", m.net.advertise(slot), "--open-http", "--cache-size", "64MiB", "--profile", m.profile,
	}
	return n, nil
}

// seeds are the gossip addresses of all voters but n.
func seeds(all []*node, n *node) []string {
	var addrs []string
	for _, o := range all {
		if o.role == "voter" && o != n {
			addrs = append(addrs, net.JoinHostPort(o.net.advertise(o.slot), strconv.Itoa(gossipPort)))
		}
	}
	return addrs
}

// all returns the nodes; voters only those of that role.
func (m *mesh) all() []*node {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.nodes)
}

func (m *mesh) voters() []*node {
	return slices.DeleteFunc(m.all(), func(n *node) bool { return n.role != "voter" })
}

func (m *mesh) add(n *node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes = append(m.nodes, n)
}

func (m *mesh) drop(n *node) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes = slices.DeleteFunc(m.nodes, func(o *node) bool { return o == n })
}

// start starts every node that does not run and waits until all are ready.
func (m *mesh) start(ctx context.Context) error {
	for _, n := range m.all() {
		if err := n.start(); err != nil {
			return err
		}
	}
	return m.ready(ctx)
}

// ready waits until every node is. One that has ended meanwhile is an error.
func (m *mesh) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not within %v", readyWithin))
	defer cancel()
	for _, n := range m.all() {
		if err := m.waitReady(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

func (m *mesh) waitReady(ctx context.Context, n *node) error {
	for {
		ask, cancel := context.WithTimeout(ctx, askTimeout)
		ok, why := m.call.ready(ask, n.admin)
		cancel()
		if ok {
			return nil
		}
		if err, gone := n.gone(); gone {
			return fmt.Errorf("%s has ended: %w", n.name, err)
		}
		if !pause(ctx, poll) {
			return fmt.Errorf("%s is not ready (%w): %s", n.name, context.Cause(ctx), why)
		}
	}
}

// level waits until the state of every voter has reached what the leader's state holds now.
func (m *mesh) level(ctx context.Context) error {
	leader, err := m.leader(ctx)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, askTimeout)
	got, err := m.call.metrics(ask, leader.admin, appliedMetric)
	cancel()
	if err != nil {
		return err
	}
	target := got[appliedMetric]
	for _, n := range m.voters() {
		for {
			ask, cancel := context.WithTimeout(ctx, askTimeout)
			got, err := m.call.metrics(ask, n.admin, appliedMetric)
			cancel()
			if applied, ok := got[appliedMetric]; err == nil && ok && applied >= target {
				break
			}
			if !pause(ctx, poll) {
				return fmt.Errorf("%s has applied entry %.0f only, the leader %.0f: %w", n.name, got[appliedMetric], target, context.Cause(ctx))
			}
		}
	}
	return nil
}

const leaderMetric, termMetric, appliedMetric = "kvmesh_raft_leader", "kvmesh_raft_term", "kvmesh_raft_applied_index"

// leader finds the voter that leads: of those who say so, the one in the highest term.
func (m *mesh) leader(ctx context.Context) (*node, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not within %v", readyWithin))
	defer cancel()
	for {
		voters := m.voters()
		terms := make([]float64, len(voters))
		var wg sync.WaitGroup
		for i, n := range voters {
			wg.Go(func() {
				ask, cancel := context.WithTimeout(ctx, askTimeout)
				defer cancel()
				if got, err := m.call.metrics(ask, n.admin, leaderMetric, termMetric); err == nil && got[leaderMetric] == 1 {
					terms[i] = got[termMetric]
				}
			})
		}
		wg.Wait()
		if best := slices.Index(terms, slices.Max(terms)); terms[best] > 0 {
			return voters[best], nil
		}
		if !pause(ctx, poll) {
			return nil, fmt.Errorf("no voter leads: %w", context.Cause(ctx))
		}
	}
}

// kill ends every process. It may be called again.
func (m *mesh) kill() error {
	var errs []error
	for _, n := range m.all() {
		errs = append(errs, n.kill())
	}
	return errors.Join(errs...)
}

// tail is the end of a file.
func tail(path string, limit int64) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = f.Close() }() // read only
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(max(0, size-limit), io.SeekStart)
	}
	if err != nil {
		return err.Error()
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	if i := bytes.IndexByte(b, '\n'); size > limit && i >= 0 {
		b = b[i+1:]
	}
	return string(b)
}

// pause waits for d. It reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func asError[T error](err error, target *T) bool { return errors.As(err, target) }
