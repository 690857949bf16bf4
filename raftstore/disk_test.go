package raftstore

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// tcpNet gives every opening of a node another port: only its id stays the same.
type tcpNet struct {
	mu    sync.Mutex // guards addrs
	addrs map[string]string
}

type tcpEndpoint struct {
	net.Listener
	n *tcpNet
}

func (n *tcpNet) listen(t *testing.T, id string) StreamLayer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs[id] = l.Addr().String()
	return tcpEndpoint{l, n}
}

func (e tcpEndpoint) DialNode(ctx context.Context, id string) (net.Conn, error) {
	e.n.mu.Lock()
	addr := e.n.addrs[id]
	e.n.mu.Unlock()
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// onDisk makes the nodes of a cluster what they are in production: bbolt logs, TCP, real time.
func onDisk(t *testing.T, ids ...string) *cluster {
	c := newCluster(t, ids...)
	tcp := &tcpNet{addrs: make(map[string]string)}
	c.adapt = func(id string, o *Options) {
		o.LogStore, o.Stream, o.Profile = nil, tcp.listen(t, id), ProfileLAN
	}
	return c
}

func TestOnDisk(t *testing.T) {
	c := onDisk(t, "a", "b", "c")
	seen := new(observed)
	adapt := c.adapt
	c.adapt = func(id string, o *Options) {
		adapt(id, o)
		set, err := ProfileLAN.settings()
		if err != nil {
			t.Error(err)
		}
		set.snapshotBytes, set.trailingBytes = 64<<10, 16<<10
		o.settings = &set
		o.Metrics = prometheus.NewRegistry()
		o.Observe = seen.see
	}
	c.start()
	behind := c.follower().opts.NodeID
	c.stop(behind)

	write := func(from, n int) kv.Revision {
		lead := c.leader()
		var wg sync.WaitGroup
		for w := range 16 {
			wg.Go(func() {
				lead := lead
				for i := from + w; i < from+n; i += 16 {
					// On a busy machine the leader may change; the same write may be sent again.
					for {
						_, err := lead.Propose(t.Context(), []command.Op{c.put(key(i), strings.Repeat("v", 300))})
						if isCode(err, kv.CodeNoLeader, kv.CodeNotLeader, kv.CodeOutcomeUnknown) {
							lead = c.leader()
							continue
						}
						if err != nil {
							t.Error(err)
						}
						break
					}
				}
			})
		}
		wg.Wait()
		return c.leader().State().Applied().Revision
	}
	write(0, 1000)
	c.open(behind)
	c.converge(write(1000, 500))
	if !slices.ContainsFunc(seen.records(), func(r kv.Record) bool { return r.Kind == kv.RecordAll }) {
		t.Error("it caught up without a checkpoint")
	}

	old := c.leader()
	start := time.Now()
	c.stop(old.opts.NodeID)
	write(1500, 1)
	t.Logf("first write %v after the leader has gone", time.Since(start).Round(time.Millisecond))

	for _, id := range []string{"a", "b", "c"} {
		if c.nodes[id] != nil {
			c.stop(id)
		}
	}
	for _, id := range []string{"a", "b", "c"} {
		c.open(id)
	}
	c.converge(write(1501, 1))
	for _, n := range c.nodes {
		for i := range 1500 {
			if len(c.get(n, key(i))) != 300 {
				t.Fatalf("%s has lost %s", n.opts.NodeID, key(i))
			}
		}
	}
}

// A directory whose parts do not fit together is refused before anything is touched.
func TestStartIsRefused(t *testing.T) {
	c := onDisk(t, "a")
	s := c.start().leader()
	for i := range 10 {
		c.mustPut(s, key(i), "v")
	}
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if err := s.log.DeleteRange(1, 5); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c.options("a")); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	c.stop("a")
	whole := c.dirs["a"]
	for missing, want := range map[string]string{
		"vote.?":     "the files with this voter's term and vote (vote.1, vote.2) are missing",
		logFile:      "the log (raft.db) is missing",
		stateDir:     "the state (state) is missing or older than the log",
		snapshotsDir: "the log has been cut up to entry",
	} {
		dir := t.TempDir()
		if _, err := vfs.Clone(vfs.Default, vfs.Default, whole, dir); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(dir, missing))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v %v", missing, files, err)
		}
		for _, f := range files {
			if err := os.RemoveAll(f); err != nil {
				t.Fatal(err)
			}
		}
		c.dirs["a"] = dir
		if _, err := Open(t.Context(), c.options("a")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", missing, err)
		}
	}
	c.dirs["a"] = whole
	c.open("a")
	if got := c.get(c.leader(), key(9)); got != "v" {
		t.Errorf("after it all: %q", got)
	}
}

// A dead leader is replaced in well under a second in one region, and in a few seconds across the world.
func TestFailoverTime(t *testing.T) {
	for profile, limit := range map[Profile]time.Duration{ProfileLAN: time.Second, ProfileWAN: 3500 * time.Millisecond} {
		virtual(t, func(t *testing.T) {
			c := newCluster(t, "a", "b", "c")
			c.adapt = func(_ string, o *Options) { o.Profile = profile }
			c.start()
			var gaps []time.Duration
			for range 21 {
				lead := c.leader().opts.NodeID
				start := time.Now()
				c.net.isolate(lead)
				c.mustPut(c.leader(lead), "k", "v")
				gaps = append(gaps, time.Since(start))
				c.net.join(lead)
				time.Sleep(5 * time.Second)
			}
			slices.Sort(gaps)
			t.Logf("profile %d: p50 %v, max %v", profile, gaps[10], gaps[20])
			if gaps[10] > limit {
				t.Errorf("profile %d: the median gap is %v", profile, gaps[10])
			}
		})
	}
}
