package sim

import (
	"context"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// scene is a mesh in a bubble of its own that follows a script.
type scene struct {
	*testing.T
	*world
	ctx context.Context
	ns  kv.Namespace // "default"
}

// play lays out a mesh on a steady network, lets before change the machines, starts them, and runs the script. Every
// answer that goes through scene.read is held against the history at the end.
func play(t *testing.T, sh shape, before func(*world), script func(*testing.T, *scene)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(bubbleTime))
		var log io.Writer
		if *verbose {
			log = os.Stdout
		}
		s := &scene{T: t, ctx: context.Background()}
		s.world = newWorld(sh, 1, dir, log, func(err error) { t.Errorf("fatal: %v", err) })
		s.steady()
		if before != nil {
			before(s.world)
		}
		defer func() {
			s.stop()
			time.Sleep(30 * time.Second) // memberlist's timers
			for _, v := range s.history.violations() {
				t.Error(v)
			}
		}()
		for _, m := range s.machines {
			s.boot(m)
		}
		s.allReady()
		ns, err := s.machines[0].running().Service().Namespace(s.ctx, "default")
		if err != nil {
			t.Fatal(err)
		}
		s.ns = ns
		script(t, s)
	})
}

func (s *scene) boot(m *machine) {
	s.Helper()
	if err := s.start(m); err != nil {
		s.Fatal(err)
	}
}

func (s *scene) allReady() {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	if err := s.ready(ctx); err != nil {
		s.Fatal(err)
	}
}

// write puts a value; it must succeed.
func (s *scene) write(m *machine, key, value string) api.WriteResult {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, opTimeout)
	defer cancel()
	res, err := s.put(ctx, m, s.ns, key, value)
	if err != nil {
		s.Fatalf("write of %s at %s: %v", key, m.name, err)
	}
	return res
}

// read is a default read with a cache_ttl of an hour, unless k demands more; it must succeed.
func (s *scene) read(m *machine, key string, k api.Consistency) (*api.Value, string) {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, opTimeout)
	defer cancel()
	v, value, err := s.get(ctx, m, s.ns, key, time.Hour, k)
	if err != nil {
		s.Fatalf("read of %s at %s: %v", key, m.name, err)
	}
	return v, value
}

// ask is one HTTP request that gets an answer.
func (s *scene) ask(m *machine, method, path, body string, headers ...string) answer {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	a, err := s.http(ctx, m, method, path, body, headers...)
	if err != nil {
		s.Fatalf("%s %s at %s: %v", method, path, m.name, err)
	}
	return a
}

// within waits until ok holds, and fails the test when it takes longer than d of virtual time.
func (s *scene) within(d time.Duration, what string, ok func() bool) time.Duration {
	s.Helper()
	start := time.Now()
	step := min(max(d/500, 10*time.Millisecond), 100*time.Millisecond)
	for !ok() {
		if time.Since(start) > d {
			s.Fatalf("not within %v: %s", d, what)
		}
		time.Sleep(step)
	}
	return time.Since(start)
}

// caughtUp says that a node has applied everything up to rev and been proven current since.
func caughtUp(m *machine, rev kv.Revision) bool {
	age := m.metric("kvmesh_feed_proof_age_seconds")
	return m.metric("kvmesh_watermark_revision") >= float64(rev) && age >= 0 && age < 2
}

func fills(m *machine) float64 { return m.metric("kvmesh_fills_total") }

// unchanged fails the test when a reading of a metric has moved.
func (s *scene) unchanged(what string, before, after float64) {
	s.Helper()
	if before != after {
		s.Errorf("%s: %v before, %v after", what, before, after)
	}
}

func nth(prefix string, i int) string { return fmt.Sprintf("%s-%03d", prefix, i) }
