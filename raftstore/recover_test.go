package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// ends collects what the stores of a test call Fatal with.
type ends struct {
	mu sync.Mutex // guards by
	by map[string]error
}

func (e *ends) watch(c *cluster) {
	e.by = make(map[string]error)
	c.adapt = func(id string, o *Options) {
		o.Fatal = func(err error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.by[id] = err
		}
	}
}

func (e *ends) of(id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.by[id]
}

func (c *cluster) recovery(id string) RecoverOptions {
	return RecoverOptions{Dir: c.dirs[id], NodeID: id, LogStore: c.logs}
}

// stopAll ends every node, and returns the revision that all of them had reached.
func (c *cluster) stopAll() {
	for id := range c.nodes {
		c.stop(id)
	}
}

// TestRecover loses the quorum for good: the survivor goes on alone in a new epoch with everything that was acknowledged,
// new voters join it, and the old ones can do no harm when they come back with what they had.
func TestRecover(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		var last kv.Revision
		for i := range 50 {
			last = c.mustPut(lead, key(i), "before").Revision
		}
		c.converge(last)
		before := lead.State().Applied()
		c.stopAll()

		sv, err := Survey(c.recovery("a"))
		if err != nil || sv.Applied.Revision != last || sv.LastIndex < before.Index || len(sv.Members.Voters) != 3 || sv.Unfinished {
			t.Fatalf("survey: %+v %v", sv, err)
		}
		out, err := Recover(c.recovery("a"))
		if err != nil {
			t.Fatal(err)
		}
		if out.Epoch.Compare(before.Epoch) <= 0 || out.Revision != last+1 || out.Lineage.Compare(sv.Lineage) <= 0 {
			t.Errorf("recovered to %+v, was %+v", out, before)
		}

		var ended ends
		ended.watch(c)
		a := c.open("a")
		if c.leader() != a {
			t.Fatal("the survivor does not lead")
		}
		for i := range 50 {
			if got := c.get(a, key(i)); got != "before" {
				t.Errorf("%s is %q", key(i), got)
			}
		}
		res := c.mustPut(a, "k", "after")
		if res.Epoch != out.Epoch || res.Revision != last+2 {
			t.Errorf("the first write after the recovery: %+v", res)
		}
		term := a.Status().Term

		// The lost voters come back with their old disks: they are a quorum of what they know.
		c.open("b")
		c.open("c")
		time.Sleep(10 * time.Second)
		for _, id := range []string{"b", "c"} {
			if err := ended.of(id); err == nil || !strings.Contains(err.Error(), "Move the data directory aside") {
				t.Errorf("%s goes on: %v", id, err)
			}
		}
		if now := a.Status(); now.Term != term || now.Raft != "leader" || len(now.Voters) != 1 {
			t.Errorf("the old voters have disturbed the survivor: %+v, term %d before", now, term)
		}
		if got := c.get(a, "k"); got != "after" || ended.of("a") != nil {
			t.Errorf("the survivor says %q, %v", got, ended.of("a"))
		}
		c.stop("b")
		c.stop("c")

		// New voters join, and find everything.
		for _, id := range []string{"d", "e"} {
			c.dirs[id] = t.TempDir()
			d := c.open(id)
			if err := a.AddMember(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := a.Promote(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			c.converge(c.mustPut(a, "k", id).Revision)
			if got := c.get(d, key(7)); got != "before" || d.Lineage() != out.Lineage {
				t.Errorf("%s has %q, lineage %v", id, got, d.Lineage())
			}
		}
	})
}

// TestRecoverInterrupted stops a recovery after every step: the directory is refused until the recovery is run again, and
// then all is as it would have been.
func TestRecoverInterrupted(t *testing.T) {
	for done := range 6 {
		virtual(t, func(t *testing.T) {
			c := newCluster(t, "a", "b", "c").start()
			lead := c.leader()
			var last kv.Revision
			for i := range 10 {
				last = c.mustPut(lead, key(i), "v").Revision
			}
			c.converge(last)
			c.stopAll()

			s, undo, err := openStopped(c.recovery("a"))
			if err != nil {
				t.Fatal(err)
			}
			sv, err := s.survey()
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.beginRecovery(sv)
			if err != nil {
				t.Fatal(err)
			}
			for _, step := range []func(*recovery) error{s.leaveLineage, s.applyRest, s.appendEpoch, s.applyRest, s.takeOver}[:done] {
				if err := step(r); err != nil {
					t.Fatal(err)
				}
			}
			if err := undo.run(); err != nil {
				t.Fatal(err)
			}
			if s, err := Open(t.Context(), c.options("a")); err == nil || !strings.Contains(err.Error(), "kvmesh cluster recover") {
				t.Fatalf("after %d steps it opens: %v %v", done, s, err)
			}
			if sv, err := Survey(c.recovery("a")); err != nil || !sv.Unfinished {
				t.Fatalf("after %d steps: %+v %v", done, sv, err)
			}
			out, err := Recover(c.recovery("a"))
			if err != nil || out.Lineage != r.lineage || out.Revision != last+1 {
				t.Fatalf("after %d steps: %+v %v", done, out, err)
			}
			a := c.open("a")
			if res := c.mustPut(c.leader(), "k", "v"); res.Epoch != out.Epoch || res.Revision != last+2 {
				t.Errorf("after %d steps: %+v", done, res)
			}
			for i := range 10 {
				if got := c.get(a, key(i)); got != "v" {
					t.Errorf("after %d steps %s is %q", done, key(i), got)
				}
			}
		})
	}
}

// TestRecoverBestSurvivor: of two survivors, the one that Compare prefers has what the other one lacks, whether its state
// has applied it or only its log holds it.
func TestRecoverBestSurvivor(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		lead := c.leader()
		c.converge(c.mustPut(lead, "early", "v").Revision)
		behind := c.follower().opts.NodeID
		c.stop(behind)
		best := ""
		for id := range c.nodes {
			if id != lead.opts.NodeID {
				best = id
			}
		}
		res, err := lead.Propose(t.Context(), []command.Op{c.put("late", "v")})
		if err != nil {
			t.Fatal(err)
		}
		c.net.isolate(lead.opts.NodeID)
		c.stopAll()
		// A killed node's state may lie behind its log, or be gone: nothing but the log is fsynced with every entry.
		if err := os.RemoveAll(filepath.Join(c.dirs[best], stateDir)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(c.dirs[best], stateDir), 0o700); err != nil {
			t.Fatal(err)
		}
		x, err1 := Survey(c.recovery(best))
		y, err2 := Survey(c.recovery(behind))
		if err := errors.Join(err1, err2); err != nil || x.Compare(y) <= 0 || y.Compare(x) >= 0 {
			t.Fatalf("%+v and %+v: %v", x, y, err)
		}
		if x.Applied.Revision != res.Revision || y.Applied.Revision >= res.Revision || x.Applied.Epoch != res.Epoch {
			t.Errorf("%+v and %+v, the last write was %+v", x, y, res)
		}
		out, err := Recover(c.recovery(best))
		if err != nil || out.Revision != res.Revision+1 {
			t.Fatalf("%+v %v, want revision %d", out, err, res.Revision+1)
		}
		c.net.join(lead.opts.NodeID)
		if got := c.get(c.open(best), "late"); got != "v" {
			t.Errorf("an acknowledged write is %q", got)
		}
		// Whoever is recovered later, and on less, is the newer line: the operator has said so. It has less all the same.
		if out, err := Recover(c.recovery(behind)); err != nil || out.Revision >= res.Revision+1 {
			t.Errorf("%+v %v", out, err)
		}
	})
}

// TestRecoverRefuses names what is wrong with a directory that cannot be recovered.
func TestRecoverRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Recover(RecoverOptions{Dir: dir, NodeID: "a"}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("an empty directory: %v", err)
	}
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		c.open("a")
		c.stop("a")
		if _, err := Recover(c.recovery("a")); err == nil || !strings.Contains(err.Error(), "not received any data") {
			t.Errorf("a node that never joined: %v", err)
		}
	})
}
