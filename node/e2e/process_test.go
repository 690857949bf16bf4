package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// layout adds voters and edges that have all voters, or a random one, as seeds.
func layout(t *testing.T, p *nodetest.Procs, voters, edges int) (v, e []*nodetest.Proc) {
	t.Helper()
	regions := []string{"us-east", "eu-west", "ap-south"}
	for i := range voters {
		v = append(v, p.Add("voter-"+strconv.Itoa(i), "voter", "--region", regions[i%3]))
	}
	for i := range edges {
		e = append(e, p.Add("edge-"+strconv.Itoa(i), "edge", "--region", regions[i%3]))
	}
	for _, n := range p.All { // timers that the tests beside this one do not upset
		n.Args = append(n.Args, "--profile", "wan")
	}
	one := v[rand.IntN(len(v))] // the seed of all others, which has itself another
	for i, n := range p.All {
		seed := one
		if n == one && voters > 1 {
			seed = v[(slices.Index(v, one)+1)%voters]
		}
		if n != one || voters > 1 {
			n.Args = append(n.Args, "--join", seed.Gossip)
		}
		if i < voters {
			n.Args = append(n.Args, "--bootstrap-expect", strconv.Itoa(voters))
		}
	}
	return v, e
}

// startAll starts nodes in any order and waits until all are ready.
func startAll(t *testing.T, nodes []*nodetest.Proc) {
	t.Helper()
	order := slices.Clone(nodes)
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, n := range order {
		n.Start(t)
	}
	nodetest.WaitReady(t, nodes...)
}

// leader waits until all of the nodes name the same living leader, and returns it and the others.
func leader(t *testing.T, voters []*nodetest.Proc) (*nodetest.Proc, []*nodetest.Proc) {
	t.Helper()
	var found *nodetest.Proc
	nodetest.Eventually(t, nodetest.Patience, "a leader", func() error {
		for _, v := range voters {
			s, err := v.Cluster(t.Context())
			if err != nil {
				return err
			}
			if s.Leader == s.Self {
				found = v
				return nil
			}
		}
		return errors.New("no voter says that it leads")
	})
	return found, slices.DeleteFunc(slices.Clone(voters), func(v *nodetest.Proc) bool { return v == found })
}

// TestKilled kills the leader and then all voters at once, under load, and finds everything that was acknowledged.
func TestKilled(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	startAll(t, p.All)

	l := startLoad(t, 4, p.All)
	l.more(40)
	dead, rest := leader(t, voters)
	dead.Kill(t)
	l.more(40)
	leader(t, rest)
	l.verify(append(rest, edges...))
	dead.Start(t)
	nodetest.WaitReady(t, dead)
	l.verify([]*nodetest.Proc{dead})

	again := startLoad(t, 4, p.All)
	again.more(40)
	for _, v := range voters {
		v.Signal(t, syscall.SIGKILL) // all of them, before any is waited for
	}
	for _, v := range voters {
		v.Kill(t)
	}
	again.end()
	// The edge goes on with what it has, and says at once that it cannot write.
	a, err := edges[0].Do(t.Context(), http.MethodPut, "/v1/kv/default/x", []byte("x"))
	if err != nil || a.Status != http.StatusServiceUnavailable {
		t.Errorf("a write without voters: %v %v", a, err)
	}
	startAll(t, voters)
	nodetest.WaitReady(t, edges...)
	again.verify(p.All)
}

// TestRestart: a voter goes on where it was; one that lost its disk comes back as another node and catches up.
func TestRestart(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, _ := layout(t, p, 3, 0)
	startAll(t, p.All)
	values := map[string][]byte{}
	write := func(name string) {
		t.Helper()
		for _, size := range loadSizes {
			target, value := fmt.Sprintf("/v1/kv/default/%s-%d", name, size), randomBytes(size)
			voters[1].Must(t, 200, http.MethodPut, target, value, "Kv-Metadata", `"`+name+`"`)
			values[target] = value
		}
	}
	check := func(n *nodetest.Proc) {
		t.Helper()
		for target, value := range values {
			nodetest.Eventually(t, visible, "after a restart", func() error { return n.Sees(t.Context(), target, value) })
		}
	}
	write("first")
	before, err := voters[0].Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	voters[0].Kill(t)
	write("while-it-was-away")
	voters[0].Start(t)
	nodetest.WaitReady(t, voters[0])
	check(voters[0])
	after, err := voters[0].Cluster(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after.Self != before.Self || after.Epoch != before.Epoch || after.Cluster != before.Cluster || after.Revision <= before.Revision {
		t.Errorf("restarted as %+v, was %+v", after, before)
	}

	voters[2].Kill(t)
	if err := os.RemoveAll(voters[2].DataDir); err != nil {
		t.Fatal(err)
	}
	write("while-it-had-no-disk")
	voters[2].Start(t)
	nodetest.WaitReady(t, voters[2])
	check(voters[2])
	if s, err := voters[2].Cluster(t.Context()); err != nil || s.Cluster != before.Cluster {
		t.Errorf("with an empty disk: %+v (%v), want mesh %s", s, err, before.Cluster)
	}
	write("after-it-came-back")
	check(voters[2])
}

// TestSigterm stops the leader in order, under load: a client that goes to another node when one is not ready, or refuses
// the connection, has no failed request.
func TestSigterm(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	startAll(t, p.All)
	leaving, rest := leader(t, voters)
	edges[0].Must(t, 200, http.MethodPut, "/v1/kv/default/k", []byte("v"))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var done atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex // guards failed
	var failed []error
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				target, value := fmt.Sprintf("/v1/kv/default/%d-%d", w, i), []byte(strconv.Itoa(i))
				if err := politely(ctx, http.MethodPut, target, value, leaving, rest[w%2], edges[0]); err != nil && ctx.Err() == nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
				done.Add(1)
			}
		})
	}
	served := func(n int64) {
		t.Helper()
		from := done.Load()
		nodetest.Eventually(t, nodetest.Patience, "requests", func() error {
			if done.Load()-from < n {
				return fmt.Errorf("%d served", done.Load()-from)
			}
			return nil
		})
	}
	served(30)
	upload := slowPut(t, leaving)
	leaving.Signal(t, syscall.SIGTERM)
	nodetest.Eventually(t, nodetest.Patience, "not ready before it is gone", func() error {
		status, body, err := leaving.Readyz(t.Context())
		if err == nil && (status != http.StatusServiceUnavailable || !strings.Contains(body, "draining")) {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
	if a := upload(); a.Status != http.StatusOK {
		t.Errorf("a write that had begun before SIGTERM: %v", a)
	}
	if code := leaving.Wait(t, nodetest.Patience); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	served(30)
	cancel()
	wg.Wait()
	// Whom the machine has kept from the others for half a second, or from answering until the deadline, does not know what
	// became of a write either.
	starved := strings.Contains(rest[0].Log(t)+rest[1].Log(t), "failed to contact quorum of nodes")
	for _, err := range failed {
		late := strings.Contains(err.Error(), "no answer came in time")
		if !strings.Contains(err.Error(), string(kv.CodeOutcomeUnknown)) || !starved && !late {
			t.Errorf("while the leader left: %v", err)
		}
	}
	leader(t, rest)
	if strings.Contains(leaving.Log(t), "could not be handed over") {
		t.Error("the leadership was not handed over")
	}
	// It left, it did not fail: the others say so, and nobody waits for it.
	nodetest.Eventually(t, visible, "left", func() error {
		s, err := edges[0].Cluster(t.Context())
		if err != nil {
			return err
		}
		for _, m := range s.Members {
			if m.Name == leaving.Name && m.State == "failed" {
				return fmt.Errorf("%+v", m)
			}
		}
		return nil
	})
	others := []*nodetest.Proc{edges[0], rest[0]}
	for _, n := range others {
		n.Signal(t, syscall.SIGTERM)
	}
	for _, n := range others {
		if code := n.Wait(t, nodetest.Patience); code != 0 {
			t.Errorf("%s: exit code %d after SIGTERM", n.Name, code)
		}
	}
}

// TestOneVoter: one voter alone is a mesh, whatever restarts and whatever size the values have, and edges join it.
func TestOneVoter(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 1, 1)
	startAll(t, p.All)
	value := randomBytes(kv.MaxInlineValueBytes + 1)
	edges[0].Must(t, 200, http.MethodPut, "/v1/kv/default/k", value)
	voters[0].Kill(t)
	// The edge answers from its memory, and writes fail at once with a reason.
	if err := edges[0].Sees(t.Context(), "/v1/kv/default/k"+aDay, value); err != nil {
		t.Errorf("the voter is gone: %v", err)
	}
	a, err := edges[0].Do(t.Context(), http.MethodPut, "/v1/kv/default/k", []byte("x"))
	if err != nil || a.Status != 503 || !bytes.Contains(a.Body, []byte("retry")) && a.Err().Code != "outcome_unknown" {
		t.Errorf("a write without a voter: %v %v", a, err)
	}
	voters[0].Start(t)
	nodetest.WaitReady(t, voters[0])
	if a.Err().Code != "outcome_unknown" {
		nodetest.Eventually(t, visible, "the value at the restarted voter", func() error {
			return voters[0].Sees(t.Context(), "/v1/kv/default/k", value)
		})
	}
	nodetest.Eventually(t, nodetest.Patience, "a write through the edge", func() error {
		a, err := edges[0].Do(t.Context(), http.MethodPut, "/v1/kv/default/k", []byte("y"))
		if err == nil && a.Status != 200 {
			err = fmt.Errorf("%v", a)
		}
		return err
	})
}
