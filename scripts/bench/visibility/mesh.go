package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"kvmesh/node"
	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
	"kvmesh/node/wan"
	"kvmesh/raftstore/kv"
)

const (
	// within is the round trip inside a region. It also puts every connection behind the queues of package wan, whose
	// deadlines hold whatever the weather does below them.
	within       = 200 * time.Microsecond
	readyTimeout = time.Minute
	stopTimeout  = 30 * time.Second
	cacheBytes   = 64 << 20
	// portStep is how far the ports of two nodes are apart: each has four.
	portStep = 4
)

var regions = []string{"us-east", "eu-west", "ap-south"}

// mesh is the mesh under test.
type mesh struct {
	*devmesh.Mesh
	weather *weather
	dir     string
	slowest time.Duration // one-way delay

	mu    sync.Mutex // guards fatal
	fatal []error
}

// startMesh runs a voter and an edge in each region, and returns when all are ready.
func startMesh(ctx context.Context, o options, log io.Writer) (_ *mesh, err error) {
	m := &mesh{weather: newWeather(o.seed)}
	for _, a := range regions {
		for _, b := range regions {
			m.slowest = max(m.slowest, wan.DefaultMatrix(nil).OneWay(a, b))
		}
	}
	if m.dir, err = os.MkdirTemp("", "kvmesh-visibility-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.stop())
		}
	}()
	logger, err := o.logger(log)
	if err != nil {
		return nil, err
	}
	port, err := freePorts(2 * len(regions) * portStep)
	if err != nil {
		return nil, err
	}
	m.Mesh, err = devmesh.Start(devmesh.Shape{
		Regions: regions, Voters: len(regions), EdgesPerRegion: 1, FirstPort: port, PortStep: portStep, DataDir: m.dir,
		WAN: true, CacheBytes: cacheBytes, MeshKey: certs.NewMeshKey(), Version: "bench",
		Matrix: func(addrs map[string]string) wan.Matrix {
			x := wan.DefaultMatrix(addrs)
			x.Within = within
			return x
		},
		Machine: func(devmesh.Member) node.Environment {
			return node.Environment{Dial: m.weather.dial, Gossip: gossipNetwork{m.weather}}
		},
		Logger: logger,
		Fatal: func(err error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.fatal = append(m.fatal, err)
		},
	})
	if err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	return m, m.Ready(ready)
}

// freePorts finds n ports in a row that nobody listens on, outside the range from which the kernel takes its own.
func freePorts(n int) (int, error) {
	for range 100 {
		first := 10000 + rand.IntN(20000)
		free := true
		for i := 0; i < n && free; i++ {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(first+i)))
			if free = err == nil; free {
				free = l.Close() == nil
			}
		}
		if free {
			return first, nil
		}
	}
	return 0, fmt.Errorf("no %d free ports in a row were found between 10000 and 30000", n)
}

// stop ends all nodes and removes their data.
func (m *mesh) stop() error {
	m.weather.set(healthy)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	var err error
	if m.Mesh != nil {
		err = m.Stop(ctx)
	}
	m.weather.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	return errors.Join(err, errors.Join(m.fatal...), os.RemoveAll(m.dir))
}

// of lists the nodes of a role, by region.
func (m *mesh) of(role string) []int {
	var out []int
	for i := range m.Members {
		if m.Members[i].Role == role {
			out = append(out, i)
		}
	}
	return out
}

// leader is the region of the node that leads, "none" when none does.
func (m *mesh) leader() string {
	for i, n := range m.Nodes {
		if n.Leads() {
			return m.Members[i].Region
		}
	}
	return "none"
}

// commits notes when the voters' states reached each revision. The leader's is the first: a follower hears of a commit
// from it.
type commits struct {
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu      sync.Mutex // guards all below
	at      []time.Time
	changed chan struct{} // closed and replaced when at grows
}

func watchCommits(m *mesh) *commits {
	ctx, cancel := context.WithCancel(context.Background())
	c := &commits{cancel: cancel, changed: make(chan struct{})}
	for _, i := range m.of(certs.RoleVoter) {
		n := m.Nodes[i]
		c.tasks.Go(func() {
			for {
				epoch, w := n.Position()
				if n.WaitPosition(ctx, epoch, w+1) != nil {
					return // the bench begins no new epochs
				}
				now := time.Now()
				_, w = n.Position()
				c.note(w, now)
			}
		})
	}
	return c
}

// note says that a state has reached rev.
func (c *commits) note(rev kv.Revision, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kv.Revision(len(c.at)) > rev {
		return
	}
	for kv.Revision(len(c.at)) <= rev {
		c.at = append(c.at, now)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

// of is when rev was committed; it waits for whoever notes it.
func (c *commits) of(ctx context.Context, rev kv.Revision) (time.Time, bool) {
	for {
		c.mu.Lock()
		changed := c.changed
		if kv.Revision(len(c.at)) > rev {
			defer c.mu.Unlock()
			return c.at[rev], true
		}
		c.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return time.Time{}, false
		}
	}
}

func (c *commits) stop() {
	c.cancel()
	c.tasks.Wait()
}
