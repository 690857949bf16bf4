package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"kvmesh/node/api"
	"kvmesh/node/nodetest"
)

// command runs the real program as somebody at a terminal would, and returns its exit code and what it has printed.
func command(t *testing.T, at *nodetest.Proc, stdin string, args ...string) (code int, out, errOut string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program(t), args...)
	cmd.Env = nodetest.Env()
	if at != nil {
		cmd.Env = append(cmd.Env, "KVMESH_URL="+at.Base)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("kvmesh %q: %v", args, err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// must runs a command that must succeed.
func must(t *testing.T, at *nodetest.Proc, args ...string) string {
	t.Helper()
	code, out, errOut := command(t, at, "", args...)
	if code != 0 {
		t.Fatalf("kvmesh %q: exit code %d\n%s%s", args, code, out, errOut)
	}
	return out
}

// members asks a node who belongs to the central store.
func members(ctx context.Context, at *nodetest.Proc) (api.Membership, error) {
	var m api.Membership
	a, err := at.Do(ctx, http.MethodGet, "/v1/cluster/members", nil)
	if err == nil && a.Status != http.StatusOK {
		err = fmt.Errorf("%s: members: %v", at.Name, a)
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &m)
	}
	return m, err
}

// votes waits until the leader, asked through a node, says that exactly the given nodes, as they run now, have a vote.
func votes(t *testing.T, at *nodetest.Proc, want ...*nodetest.Proc) {
	t.Helper()
	var names []string
	for _, n := range want {
		names = append(names, n.Name)
	}
	nodetest.Eventually(t, nodetest.Patience, "votes of "+strings.Join(names, ", "), func() error {
		var ids, got []string
		for _, n := range want {
			s, err := n.Cluster(t.Context())
			if err != nil {
				return err
			}
			ids = append(ids, s.Self)
		}
		m, err := members(t.Context(), at)
		if err != nil {
			return err
		}
		for _, row := range m.Members {
			if row.Vote == api.VoteYes {
				got = append(got, row.ID)
			}
		}
		slices.Sort(ids)
		if slices.Sort(got); !slices.Equal(got, ids) || m.Error != "" {
			return fmt.Errorf("%q have a vote, want %q: %+v", got, ids, m)
		}
		return nil
	})
}

// removed waits until a node says that it was removed, and how to come back.
func removed(t *testing.T, n *nodetest.Proc) {
	t.Helper()
	nodetest.Eventually(t, nodetest.Patience, n.Name+" says that it was removed", func() error {
		status, body, err := n.Readyz(t.Context())
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, "was removed") ||
			!strings.Contains(body, "kvmesh cluster join") || !strings.Contains(body, n.DataDir)) {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
}

// remove removes a voter, once those that stay have fetched the large values that they lack; before, it is refused.
func remove(t *testing.T, at, voter *nodetest.Proc) {
	t.Helper()
	nodetest.Eventually(t, nodetest.Patience, "a removal", func() error {
		code, _, errOut := command(t, at, "", "cluster", "remove", voter.Name)
		if code != 0 && !strings.Contains(errOut, "large values to fetch yet") {
			t.Fatalf("remove %s: exit code %d\n%s", voter.Name, code, errOut)
		}
		if code != 0 {
			return errors.New(errOut)
		}
		return nil
	})
}

// TestMembers adds, removes and replaces voters of a mesh under load, through the real commands. Nothing acknowledged is
// lost, and what would do harm is refused.
func TestMembers(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	seed := p.Add("voter-0", "voter")
	v := []*nodetest.Proc{seed, p.Add("voter-1", "voter"), p.Add("voter-2", "voter")}
	edge := p.Add("edge", "edge", "--join", seed.Gossip)
	for _, n := range v {
		n.Args = append(n.Args, "--bootstrap-expect", "3", "--join", seed.Gossip+","+v[1].Gossip)
	}
	startAll(t, p.All)
	l := startLoad(t, 3, []*nodetest.Proc{seed, v[2], edge})
	l.more(20)

	// A new voter and a learner join by themselves; only the voter gets a vote, and the learner when it is told to.
	fourth := p.Add("voter-3", "voter", "--join", seed.Gossip)
	learner := p.Add("learner", "learner", "--join", seed.Gossip)
	fourth.Start(t)
	learner.Start(t)
	votes(t, edge, append(v, fourth)...)
	nodetest.WaitReady(t, fourth, learner)
	out := must(t, edge, "cluster", "members")
	if !strings.Contains(out, "learner   learner") {
		t.Errorf("members:\n%s", out)
	}

	// One loses its disk, and comes back at its address: it is a new node, and takes the old one's place.
	v[1].Kill(t)
	if err := os.RemoveAll(v[1].DataDir); err != nil {
		t.Fatal(err)
	}
	v[1].Start(t)
	l.more(20)
	votes(t, edge, append(v, fourth)...)
	nodetest.WaitReady(t, v[1])

	// The leader is removed while it runs: another one leads, and it says that it was removed.
	lead, rest := leader(t, append(slices.Clone(v), fourth))
	remove(t, edge, lead)
	votes(t, edge, rest...)
	l.more(20)
	removed(t, lead)

	// With one of the three down, none may go; the refusal says why and what to do.
	now, others := leader(t, rest)
	down, up := others[0], others[1]
	down.Kill(t)
	nodetest.Eventually(t, nodetest.Patience, "a removal that would lose the quorum is refused", func() error {
		code, _, errOut := command(t, now, "", "cluster", "remove", up.Name, "--retry-for", "0s")
		if code == 0 {
			t.Fatal("it was carried out")
		}
		if !strings.Contains(errOut, down.Name) || !strings.Contains(errOut, "no quorum") || !strings.Contains(errOut, "Start these again") {
			return errors.New(errOut)
		}
		return nil
	})
	remove(t, now, down)
	votes(t, now, now, up)

	// Whoever was removed while it was down finds that out when it starts again, and disturbs nobody.
	before, err := now.Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	down.Start(t)
	removed(t, down)
	l.more(20)
	if after, err := now.Cluster(t.Context()); err != nil || after.Leader != before.Leader || after.Epoch != before.Epoch {
		t.Errorf("the mesh was disturbed: %+v, was %+v (%v)", after, before, err)
	}
	must(t, edge, "cluster", "join", down.Name)
	must(t, edge, "cluster", "join", learner.Name, "--voter")
	votes(t, edge, now, up, down, learner)
	nodetest.WaitReady(t, down)
	must(t, edge, "cluster", "transfer-leader", learner.Name)
	if got, _ := leader(t, []*nodetest.Proc{now, up, down, learner}); got != learner {
		t.Errorf("%s leads, not the one that was named", got.Name)
	}
	l.more(20)
	l.verify([]*nodetest.Proc{now, up, down, learner, edge})
	badChanges(t, edge, learner)
}

// badChanges are refused, naming the thing and the remedy.
func badChanges(t *testing.T, edge, leads *nodetest.Proc) {
	t.Helper()
	for _, bad := range []struct {
		args []string
		says string
	}{
		{[]string{"remove", "nobody"}, `no node is called "nobody"`},
		{[]string{"remove", edge.Name}, "is an edge"},
		{[]string{"join", edge.Name}, "is an edge"},
		{[]string{"transfer-leader", edge.Name}, "has no vote"},
	} {
		code, _, errOut := command(t, leads, "", append([]string{"cluster"}, append(bad.args, "--retry-for", "0s")...)...)
		if code != 1 || !strings.Contains(errOut, bad.says) {
			t.Errorf("%q: exit code %d: %s", bad.args, code, errOut)
		}
	}
}

// TestQuorumLost is the drill of the README: two of three voters are lost for good, the third is recovered with one command,
// the mesh goes on in a new epoch, and the lost ones can do no harm when they come back after all.
func TestQuorumLost(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	edge := edges[0]
	startAll(t, p.All)
	const key = "/v1/kv/default/k"
	put := voters[0].Must(t, 200, http.MethodPut, key, []byte("before"))
	for _, n := range p.All {
		nodetest.Eventually(t, visible, "the value", func() error { return n.Sees(t.Context(), key, []byte("before")) })
	}
	for _, n := range voters {
		n.Kill(t)
	}
	a, b, c := voters[0], voters[1], voters[2]

	recover := []string{"cluster", "recover", "--mesh-key", p.Key, "--data-dir"}
	code, out, errOut := command(t, nil, "", append(recover, a.DataDir, "--data-dir", b.DataDir)...)
	if code == 0 || !strings.Contains(errOut, "2 of 3 voters are here, which is a majority") {
		t.Errorf("with a majority: exit code %d\n%s%s", code, out, errOut)
	}
	out = must(t, nil, append(recover, a.DataDir, "--dry-run")...)
	if !strings.Contains(out, "What may be lost") || !strings.Contains(out, "term") || !strings.Contains(out, "revision 2") {
		t.Errorf("dry run:\n%s", out)
	}
	if code, out, errOut = command(t, nil, "no\n", append(recover, a.DataDir)...); code == 0 || !strings.Contains(errOut, "nothing was changed") {
		t.Errorf("answered no: exit code %d\n%s%s", code, out, errOut)
	}
	if code, out, errOut = command(t, nil, "recover\n", append(recover, a.DataDir)...); code != 0 || !strings.Contains(out, "Recovered") {
		t.Fatalf("exit code %d\n%s%s", code, out, errOut)
	}
	a.Start(t)
	nodetest.WaitReady(t, a, edge)
	after := a.Must(t, 200, http.MethodPut, key, []byte("after"))
	if before := put.Header.Get("Kv-Bookmark")[:32]; after.Header.Get("Kv-Bookmark")[:32] <= before {
		t.Errorf("bookmark %s after %s", after.Header.Get("Kv-Bookmark"), before)
	}
	nodetest.Eventually(t, visible, "the edge in the new epoch", func() error { return edge.Sees(t.Context(), key+aDay, []byte("after")) })

	// The lost ones come back with what they had. Between them they are a majority of the old mesh.
	b.Start(t)
	c.Start(t)
	for _, n := range []*nodetest.Proc{b, c} {
		if code := n.Wait(t, nodetest.Patience); code == 0 {
			t.Errorf("%s ended with exit code 0", n.Name)
		}
		says(t, n.Name, n.Log(t), "generation 1", "generation 2", "Move the data directory aside")
	}
	votes(t, edge, a)
	for _, n := range []*nodetest.Proc{b, c} {
		if err := os.Rename(n.DataDir, n.DataDir+".old"); err != nil {
			t.Fatal(err)
		}
		n.Start(t)
	}
	votes(t, edge, a, b, c)
	nodetest.WaitReady(t, p.All...)
	for _, n := range p.All {
		nodetest.Eventually(t, visible, "the value of the new epoch", func() error { return n.Sees(t.Context(), key, []byte("after")) })
	}
}

// TestMoved restarts every node of a mesh at other addresses. They find each other by their ids.
func TestMoved(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, _ := layout(t, p, 3, 1)
	startAll(t, p.All)
	l := startLoad(t, 2, p.All)
	l.more(20)
	l.end()
	before, err := voters[0].Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range p.All {
		n.Kill(t)
	}
	p.Move()
	startAll(t, p.All)
	after, err := voters[0].Cluster(t.Context())
	if err != nil || after.Cluster != before.Cluster || after.Epoch != before.Epoch || after.Self != before.Self {
		t.Errorf("another mesh: %+v, was %+v (%v)", after, before, err)
	}
	l.verify(p.All)
	m, err := members(t.Context(), voters[1])
	if err != nil || len(m.Members) != 3 {
		t.Errorf("members: %+v %v", m, err)
	}
}
