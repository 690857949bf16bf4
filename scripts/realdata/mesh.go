package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// regions each hold one voter and one edge. The first edge takes the writes, the other two are compared.
var regions = []string{"us-east", "eu-west", "ap-south"}

// readyWithin bounds how long the whole mesh may take from the start of its processes until every /readyz is 200.
const readyWithin = 60 * time.Second

// node is one process of the mesh: its arguments stay the same for all its lives.
type node struct {
	name, role, region        string
	http, peer, gossip, admin string // host:port
	args                      []string
	logPath                   string

	cmd    *exec.Cmd
	exited chan struct{} // closed when the present process has ended and was waited for
	err    error         // of that process; read it only after exited is closed
}

// mesh is six processes: three voters and three edges. It is not safe for concurrent use.
type mesh struct {
	binary string
	nodes  []*node
}

// newMesh lays out the mesh in dir: names, free ports, data directories, arguments. The ports stay reserved until
// release is called, right before the processes start.
func newMesh(binary, dir, meshKey string) (m *mesh, release func(), err error) {
	m = &mesh{binary: binary}
	var held []io.Closer
	release = func() {
		for _, c := range held {
			c.Close() // a listener of our own that nothing was accepted from: closing it cannot fail in a way that matters
		}
		held = nil
	}
	for _, role := range []string{"voter", "edge"} {
		for _, region := range regions {
			n := &node{name: role + "-" + region, role: role, region: region}
			n.logPath = filepath.Join(dir, n.name+".log")
			for _, addr := range []*string{&n.http, &n.peer, &n.gossip, &n.admin} {
				port, closers, err := freePort()
				if err != nil {
					release()
					return nil, nil, err
				}
				held = append(held, closers...)
				*addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
			}
			m.nodes = append(m.nodes, n)
		}
	}
	for _, n := range m.nodes {
		n.args = []string{
			"serve", "--role", n.role, "--region", n.region, "--data-dir", filepath.Join(dir, n.name),
			"--http", n.http, "--peer", n.peer, "--gossip", n.gossip, "--admin", n.admin,
			"--join", strings.Join(m.seedsOf(n), ","), "--mesh-key", meshKey,
		}
		if n.role == "voter" {
			n.args = append(n.args, "--bootstrap-expect", strconv.Itoa(len(regions)))
		}
	}
	return m, release, nil
}

// seedsOf returns the gossip addresses of all voters but n itself.
func (m *mesh) seedsOf(n *node) []string {
	var seeds []string
	for _, o := range m.nodes {
		if o.role == "voter" && o != n {
			seeds = append(seeds, o.gossip)
		}
	}
	return seeds
}

// edges returns the edges, the first region's first.
func (m *mesh) edges() []edge {
	var edges []edge
	for _, n := range m.nodes {
		if n.role == "edge" {
			edges = append(edges, edge{n.region, "http://" + n.http})
		}
	}
	return edges
}

// start starts every node and waits until all are ready. It returns how long that took.
func (m *mesh) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	for _, n := range m.nodes {
		if err := n.start(m.binary); err != nil {
			return 0, fmt.Errorf("start %s: %w", n.name, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	for _, n := range m.nodes {
		if err := n.waitReady(ctx); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// kill ends every process with SIGKILL, by its pid, and waits for it. It may be called again.
func (m *mesh) kill() error {
	var errs []error
	for _, n := range m.nodes {
		if n.cmd == nil {
			continue
		}
		if err := n.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, fmt.Errorf("kill %s (pid %d): %w", n.name, n.cmd.Process.Pid, err))
			continue
		}
		<-n.exited // SIGKILL cannot be refused
		n.cmd = nil
	}
	return errors.Join(errs...)
}

// crashed names the nodes whose process has ended although nobody ended it.
func (m *mesh) crashed() []string {
	var names []string
	for _, n := range m.nodes {
		if n.cmd == nil {
			continue
		}
		select {
		case <-n.exited:
			names = append(names, fmt.Sprintf("%s (%v)", n.name, n.err))
		default:
		}
	}
	return names
}

// tails writes the end of every log to w.
func (m *mesh) tails(w io.Writer) {
	const tail = 4 << 10
	for _, n := range m.nodes {
		b, err := os.ReadFile(n.logPath)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue // never started
		case err != nil:
			fmt.Fprintf(w, "--- %s: %v\n", n.name, err)
			continue
		case len(b) > tail:
			b = b[len(b)-tail:]
			if i := bytes.IndexByte(b, '\n'); i >= 0 {
				b = b[i+1:]
			}
		}
		fmt.Fprintf(w, "--- the end of %s\n%s", n.logPath, b)
	}
}

func (n *node) start(binary string) error {
	log, err := os.OpenFile(n.logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the process has its own descriptor
	cmd := exec.Command(binary, n.args...)
	cmd.Env = meshEnv("")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) { // ends with the process; kill waits for it
		n.err = cmd.Wait()
		close(exited)
	}(n.exited)
	return nil
}

// waitReady asks /readyz until it answers 200.
func (n *node) waitReady(ctx context.Context) error {
	last := "no answer"
	for {
		status, err := n.ready(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			last = err.Error()
		case status == http.StatusOK:
			return nil
		case err == nil:
			last = "status " + strconv.Itoa(status)
		}
		select {
		case <-n.exited:
			return fmt.Errorf("%s ended before it was ready: %v", n.name, n.err)
		default:
		}
		if !pause(ctx, 20*time.Millisecond) {
			return fmt.Errorf("%s: http://%s/readyz was not 200 within %v of the start (%s)", n.name, n.admin, readyWithin, last)
		}
	}
}

func (n *node) ready(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.admin+"/readyz", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, err
}

// meshEnv is this process's environment without settings of somebody's own mesh, and with KVMESH_URL if url is given.
func meshEnv(url string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KVMESH_") {
			env = append(env, kv)
		}
	}
	if url != "" {
		env = append(env, "KVMESH_URL="+url)
	}
	return env
}

// freePort reserves a loopback port for TCP and UDP alike. It looks below the range from which the system takes the
// ports of outgoing connections: between a node's death and its next start such a connection could take it.
func freePort() (int, []io.Closer, error) {
	const low = 10000
	high := 32768 // where that range begins on Linux by default; other systems begin higher
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			if first, err := strconv.Atoi(f[0]); err == nil && first > low+1000 {
				high = first
			}
		}
	}
	var last error
	for range 1000 {
		port := low + rand.IntN(high-low)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			tcp.Close() // nothing was accepted from it
			last = err
			continue
		}
		return port, []io.Closer{tcp, udp}, nil
	}
	return 0, nil, fmt.Errorf("no free port between %d and %d on 127.0.0.1: %w", low, high, last)
}
