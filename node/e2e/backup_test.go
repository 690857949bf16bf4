package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"kvmesh/node/nodetest"
)

// kvmesh runs a command of the real program against a node.
func kvmesh(t *testing.T, node *nodetest.Proc, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(program(t), args...)
	cmd.Env = append(nodetest.Env(), "KVMESH_URL="+node.Base)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// content is what a test has written, by target.
type content map[string][]byte

func (c content) write(t *testing.T, node *nodetest.Client, name string) {
	t.Helper()
	for i := range 30 {
		for _, size := range []int{20, 3000, 70_000 + i} {
			if size > 50_000 && i >= 12 {
				continue
			}
			target, value := fmt.Sprintf("/v1/kv/default/%d-%d", i, min(size, 50_000)), append([]byte(name), randomBytes(size)...)
			insist(t, node, http.MethodPut, target, value)
			c[target] = value
		}
	}
	target := "/v1/kv/default/" + name + "-only"
	insist(t, node, http.MethodPut, target, []byte(name))
	c[target] = []byte(name)
}

// check finds exactly this content at a node, by strong reads.
func (c content) check(ctx context.Context, node *nodetest.Client, other content) error {
	for target, value := range c {
		if err := node.Sees(ctx, target+"?consistency=strong", value); err != nil {
			return err
		}
	}
	for target := range other {
		if c[target] == nil {
			if err := node.Gone(ctx, target+"?consistency=strong", "key_not_found"); err != nil {
				return err
			}
		}
	}
	return nil
}

// everywhere checks the content at every node of a mesh, patiently: a leader may have to be found first.
func (c content) everywhere(t *testing.T, nodes []*nodetest.Proc, other content) {
	t.Helper()
	for _, n := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the content at "+n.Name, func() error { return c.check(t.Context(), n.Client, other) })
	}
}

// upload sends a backup to a node to be restored, and pauses half-way. go on ends the pause; the result comes then.
func upload(t *testing.T, node *nodetest.Proc, b []byte) (goOn func(), result func() (status int, body string, err error)) {
	t.Helper()
	pr, pw := io.Pipe()
	half, more, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var status int
	var body []byte
	var err error
	go func() { // ends with the request, which closes the reading side
		_, werr := pw.Write(b[:len(b)/2])
		close(half)
		<-more
		if werr == nil {
			_, werr = pw.Write(b[len(b)/2:])
		}
		_ = pw.CloseWithError(werr) // always nil; without an error it is the end
	}()
	go func() {
		defer close(done)
		var resp *http.Response
		ctx, cancel := context.WithTimeout(t.Context(), 3*nodetest.Patience)
		defer cancel()
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodPost, node.Base+"/v1/backup?replace=true", pr); err != nil {
			return
		}
		if resp, err = http.DefaultClient.Do(req); err != nil {
			_ = pr.CloseWithError(err) // always nil
			return
		}
		status = resp.StatusCode
		body, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close() // it was read to its end, or failed
		_ = pr.Close()        // always nil
	}()
	select {
	case <-half:
	case <-done:
		t.Fatalf("the restore ended half-way: status %d %s, %v", status, body, err)
	}
	return func() { close(more) }, func() (int, string, error) {
		<-done
		return status, string(body), err
	}
}

// TestBackupAndKills: a backup of the real program, and restores in the middle of which processes are killed. Readers find
// the old content or the restored one, whole, whatever happens.
func TestBackupAndKills(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 2)
	startAll(t, p.All)
	old, now := content{}, content{}
	old.write(t, edges[0].Client, "old")
	file := filepath.Join(t.TempDir(), "mesh.backup")
	nodetest.Eventually(t, nodetest.Patience, "a backup", func() error {
		out, err := kvmesh(t, edges[1], "backup", "save", file)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	})
	if out, err := kvmesh(t, edges[1], "backup", "verify", file, "--mesh-key", p.Key); err != nil || !strings.Contains(out, "proven to be what was saved") {
		t.Fatalf("verify: %v: %s", err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	insist(t, edges[0].Client, http.MethodDelete, "/v1/kv/default/old-only", nil)
	now.write(t, edges[0].Client, "now")
	now.everywhere(t, edges, old)

	// The leader dies in the middle: the restore goes on.
	goOn, result := upload(t, edges[0], b)
	dead, rest := leader(t, voters)
	dead.Kill(t)
	now.everywhere(t, append(rest, edges...), old)
	goOn()
	status, body, err := result()
	if err != nil || status != http.StatusOK {
		t.Fatalf("the restore across leaders: %d %s, %v", status, body, err)
	}
	old.everywhere(t, append(rest, edges...), now)
	dead.Start(t)
	nodetest.WaitReady(t, dead)
	old.everywhere(t, []*nodetest.Proc{dead}, now)

	// The node that restores dies: nothing has changed.
	later := content{}
	later.write(t, edges[0].Client, "later")
	later["/v1/kv/default/old-only"] = old["/v1/kv/default/old-only"]
	goOn, result = upload(t, edges[1], b)
	later.everywhere(t, edges[:1], old)
	edges[1].Kill(t)
	goOn()
	if status, body, err := result(); err == nil {
		t.Errorf("the restoring node was killed, and answered %d %s", status, body)
	}
	later.everywhere(t, append(voters[:3:3], edges[0]), old)
	edges[1].Start(t)
	nodetest.WaitReady(t, edges[1])
	later.everywhere(t, edges, old)
	out, err := kvmesh(t, edges[0], "backup", "restore", file, "--yes", "--replace", "--retry-for", "0s")
	if err == nil || !strings.Contains(out, "another restore is under way, or was given up less than two minutes ago") {
		t.Errorf("while the dead one may still live: %v: %s", err, out)
	}
}

// TestBackupIsGivenUp: a reader that takes its time keeps no voter from stopping in order, and what comes out of a backup
// that was given up looks like what it is, through an edge too.
func TestBackupIsGivenUp(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 1, 1)
	startAll(t, p.All)
	for i := range 4 { // more than what buffers on the way hold
		insist(t, edges[0].Client, http.MethodPut, fmt.Sprint("/v1/kv/default/", i), randomBytes(8<<20))
	}
	var open []io.ReadCloser
	transport := &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			err = c.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return c, err
	}}
	defer transport.CloseIdleConnections()
	slow := &http.Client{Transport: transport}
	for _, n := range p.All {
		resp, err := slow.Get(n.Base + "/v1/backup")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%v %v", resp, err)
		}
		open = append(open, resp.Body)
		if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "b")
	if out, err := kvmesh(t, voters[0], "backup", "save", file, "--retry-for", "0s"); err == nil || !strings.Contains(out, "2 backups already") {
		t.Errorf("a third one: %v: %s", err, out)
	}
	voters[0].Signal(t, syscall.SIGTERM)
	if code := voters[0].Wait(t, nodetest.Patience); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for i, body := range open {
		n, err := io.Copy(io.Discard, body)
		if err == nil {
			t.Errorf("%s: a whole backup of %d bytes", p.All[i].Name, n)
		}
		_ = body.Close() // it has failed
	}
	out, err := kvmesh(t, edges[0], "backup", "save", file, "--retry-for", "0s")
	if _, serr := os.Stat(file); err == nil || !os.IsNotExist(serr) || !strings.Contains(out, "no voter could begin a backup") {
		t.Errorf("without a voter: %v, %v: %s", err, serr, out)
	}
	if log := voters[0].Log(t); !strings.Contains(log, "a backup was not finished") || bytes.Contains([]byte(log), []byte("panic")) {
		t.Error("the voter's log does not say that a backup was not finished")
	}
}
