package nodetest

import (
	"bufio"
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
	"sync"
	"syscall"
	"testing"
	"time"

	"kvmesh/node/certs"
)

// Build builds the program into dir, with the race detector if this test has it, and returns its path. flags go before
// the package.
func Build(dir, root string, flags ...string) (string, error) {
	bin := filepath.Join(dir, "kvmesh")
	args := append([]string{"build", "-o", bin}, raceFlags...)
	cmd := exec.Command("go", append(append(args, flags...), ".")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	return bin, nil
}

// Proc is one node as a process of its own. Its arguments stay the same over all its lives. It is not safe for concurrent
// use, but for Client.
type Proc struct {
	*Client
	Name                      string
	DataDir, LogPath          string
	HTTP, Peer, Gossip, Admin string
	Args                      []string

	bin    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the present process was waited for
	err    error         // of that process; valid once exited is closed
}

// Procs makes processes that belong to one mesh, or are to believe so.
type Procs struct {
	t   *testing.T
	bin string
	Dir string
	Key string // the mesh key's file
	All []*Proc
}

// NewProcs lays out a mesh of processes in a directory of its own. Whatever runs when the test ends is killed, and the logs
// are printed if the test has failed.
func NewProcs(t *testing.T, bin string) *Procs {
	p := &Procs{t: t, bin: bin, Dir: t.TempDir()}
	p.Key = WriteKey(t, p.Dir, "mesh.key")
	t.Cleanup(func() {
		for _, n := range p.All {
			n.Kill(t)
			n.CloseIdle()
			log, err := os.ReadFile(n.LogPath)
			switch {
			case err == nil && strings.Contains(string(log), "DATA RACE"):
				t.Errorf("%s: data race:\n%s", n.Name, log)
			case err == nil && t.Failed():
				t.Logf("--- the end of the log of %s\n%s", n.Name, tail(log))
			case err != nil && !errors.Is(err, os.ErrNotExist):
				t.Errorf("log of %s: %v", n.Name, err)
			}
		}
	})
	return p
}

// WriteKey writes a new mesh key and returns its path.
func WriteKey(t testing.TB, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(certs.NewMeshKey().Encode()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Add lays out a node with free ports; flags come after those of the layout, and win over them. It does not start it.
func (p *Procs) Add(name, role string, flags ...string) *Proc {
	p.t.Helper()
	n := &Proc{Name: name, bin: p.bin, DataDir: filepath.Join(p.Dir, name), LogPath: filepath.Join(p.Dir, name+".log")}
	for _, addr := range []*string{&n.HTTP, &n.Peer, &n.Gossip, &n.Admin} {
		*addr = FreeAddr(p.t)
	}
	n.Client = NewClient(name, "http://"+n.HTTP)
	n.Args = append([]string{
		"serve", "--name", name, "--role", role, "--data-dir", n.DataDir, "--mesh-key", p.Key,
		"--http", n.HTTP, "--peer", n.Peer, "--gossip", n.Gossip, "--admin", n.Admin, "--cache-size", "32MiB",
	}, flags...)
	p.All = append(p.All, n)
	return n
}

// Move gives all nodes, none of which runs, other addresses: their own, and in what they were told of each other.
func (p *Procs) Move() {
	p.t.Helper()
	var pairs []string
	for _, n := range p.All {
		for _, addr := range []*string{&n.HTTP, &n.Peer, &n.Gossip, &n.Admin} {
			to := FreeAddr(p.t)
			pairs = append(pairs, *addr, to)
			*addr = to
		}
		n.CloseIdle()
		n.Base = "http://" + n.HTTP
	}
	moved := strings.NewReplacer(pairs...)
	for _, n := range p.All {
		for i := range n.Args {
			n.Args[i] = moved.Replace(n.Args[i])
		}
	}
}

// Start starts the node's process.
func (n *Proc) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(n.LogPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }() // the process has a descriptor of its own
	cmd := exec.Command(n.bin, n.Args...)
	cmd.Env = Env()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", n.Name, err)
	}
	n.cmd, n.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) { // ends with the process, which Kill or Wait waits for
		n.err = cmd.Wait()
		close(exited)
	}(n.exited)
}

// Env is this process's environment without the settings of somebody's own mesh.
func Env() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "KVMESH_") {
			env = append(env, e)
		}
	}
	return env
}

// Kill ends the process with SIGKILL, if one runs, and waits for it.
func (n *Proc) Kill(t testing.TB) {
	t.Helper()
	if n.cmd == nil {
		return
	}
	n.Signal(t, syscall.SIGKILL)
	<-n.exited // SIGKILL cannot be refused
	n.cmd = nil
}

// Signal sends a signal to the process.
func (n *Proc) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s (pid %d): %v", n.Name, n.cmd.Process.Pid, err)
	}
}

// Wait waits for the process to end by itself and returns its exit code.
func (n *Proc) Wait(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-n.exited:
	case <-time.After(within):
		t.Fatalf("%s still runs after %v", n.Name, within)
	}
	n.cmd = nil
	var exit *exec.ExitError
	switch {
	case n.err == nil:
		return 0
	case errors.As(n.err, &exit):
		return exit.ExitCode()
	}
	t.Fatalf("%s: %v", n.Name, n.err)
	return -1
}

// Exited is closed when the process has ended.
func (n *Proc) Exited() <-chan struct{} { return n.exited }

// Log is everything that the node has printed in all its lives.
func (n *Proc) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(n.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Readyz asks the admin listener whether the node is ready, and returns the status and what it says.
func (n *Proc) Readyz(ctx context.Context) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/readyz", nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or failed
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// WaitReady waits until each of the nodes is ready.
func WaitReady(t testing.TB, nodes ...*Proc) {
	t.Helper()
	var ended *Proc
	for _, n := range nodes {
		Eventually(t, Patience, n.Name+" ready", func() error {
			for _, other := range nodes {
				select {
				case <-other.exited:
					ended = other
					return nil
				default:
				}
			}
			status, why, err := n.Readyz(t.Context())
			if status == http.StatusOK {
				return nil
			}
			return errors.Join(fmt.Errorf("status %d: %s", status, why), err)
		})
		if ended != nil {
			t.Fatalf("%s ended before all were ready: %v", ended.Name, ended.err)
		}
	}
}

// given holds the ports that this process has handed out: none is handed out twice, whether its node runs yet or not.
var given sync.Map

// FreeAddr is a loopback address that nobody listens on, TCP or UDP. It lies below the range from which the system takes
// the ports of outgoing connections, so that none of those takes it between two lives of a node.
func FreeAddr(t testing.TB) string {
	t.Helper()
	const low = 10000
	high := 32768 // where that range begins on Linux by default; other systems begin higher
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if f := strings.Fields(string(b)); len(f) == 2 {
			if first, err := strconv.Atoi(f[0]); err == nil && first > low+1000 {
				high = first
			}
		}
	}
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(low+rand.IntN(high-low)))
		if _, taken := given.LoadOrStore(addr, true); taken {
			continue
		}
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp", addr)
		if err == nil {
			err = udp.Close()
		}
		if err = errors.Join(err, tcp.Close()); err == nil {
			return addr
		}
	}
	t.Fatal("no free port on 127.0.0.1")
	return ""
}

// Pid is the process id of the node's present life.
func (n *Proc) Pid() int { return n.cmd.Process.Pid }

// Metric asks the admin listener for a metric and returns the sum of its samples; an error when there is none.
func (n *Proc) Metric(ctx context.Context, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.Admin+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read to its end, or failed
	sum, found := 0.0, false
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %s: %w", n.Name, lines.Text(), err)
		}
		sum, found = sum+v, true
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", n.Name, name)
	}
	return sum, nil
}
