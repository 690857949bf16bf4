// Package devmesh runs a whole mesh in one process: what `kvmesh dev` shows, and what tests of the whole system use. Every
// node is the real one, with its own data directory, ports and connections; only the process is shared.
package devmesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"kvmesh/node"
	"kvmesh/node/auth"
	"kvmesh/node/certs"
	"kvmesh/node/wan"
)

// Shape is what the mesh consists of.
type Shape struct {
	Regions        []string
	Voters         int // in all, spread over the regions in turn
	EdgesPerRegion int
	// FirstPort is the HTTP port of the first node; node i, edges first, has PortStep × i added, and its peer, gossip and
	// admin ports are the three after that. 0: every port is a free one.
	FirstPort int
	PortStep  int
	// DataDir holds a directory for each node.
	DataDir string
	WAN     bool // puts the delays between the regions into the transports
	// Matrix makes the delays of WAN out of the regions of all addresses; nil = wan.DefaultMatrix.
	Matrix func(regions map[string]string) wan.Matrix
	// Machine gives what a node takes from its machine, so that sockets can be disturbed; nil = the real machine.
	Machine    func(Member) node.Environment
	Hasty      bool // as in node.Options
	Patient    bool // as in node.Options
	CacheBytes int64
	MeshKey    certs.MeshKey
	Token      *auth.Token
	// StrictLimits is as in node.Options.
	StrictLimits bool
	Version      string
	Logger       *slog.Logger
	// Fatal is called when a node cannot go on.
	Fatal func(error)
}

// Mesh is a running mesh.
type Mesh struct {
	Nodes   []*node.Node
	Members []Member // of Nodes, in the same order
	shapers []*wan.Shaper
}

// Member is one node's place.
type Member struct {
	Role, Region, Name string
	options            node.Options
}

const host = "127.0.0.1"

// Start makes and starts all nodes; Ready waits for them. On an error nothing is left behind but the data directory.
func Start(s Shape) (*Mesh, error) {
	m := &Mesh{Members: s.members()}
	if s.FirstPort == 0 && s.WAN {
		return nil, errors.New("the delays between regions need fixed ports")
	}
	regions := make(map[string]string)
	for _, mem := range m.Members {
		for _, addr := range []string{mem.options.Peer, mem.options.Gossip} {
			regions[addr] = mem.Region
		}
	}
	matrix := s.Matrix
	if matrix == nil {
		matrix = wan.DefaultMatrix
	}
	var seeds []string
	for i := range m.Members {
		o := &m.Members[i].options
		o.Join = seeds
		if s.Machine != nil {
			o.Env = s.Machine(m.Members[i])
		}
		if s.WAN {
			shaper := wan.New(matrix(regions), o.Region)
			m.shapers = append(m.shapers, shaper)
			o.Shaper = shaper
		}
		n, err := node.New(*o)
		if err == nil {
			m.Nodes = append(m.Nodes, n)
			err = n.Start()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", o.Name, err), m.Stop(context.Background()))
		}
		if len(seeds) == 0 {
			seeds = []string{n.GossipAddr()}
		}
	}
	return m, nil
}

// members lists the nodes, edges first, then voters.
func (s *Shape) members() []Member {
	var out []Member
	add := func(role, region, name string) {
		o := node.Options{
			Role: role, Region: region, Name: name, DataDir: filepath.Join(s.DataDir, name), MeshKey: s.MeshKey, Token: s.Token, StrictLimits: s.StrictLimits,
			CacheBytes: s.CacheBytes, WAN: s.WAN, Hasty: s.Hasty, Patient: s.Patient, Version: s.Version, Logger: s.Logger, Fatal: s.Fatal,
		}
		if role == certs.RoleVoter {
			o.BootstrapExpect = s.Voters
		}
		port := func(k int) string {
			if s.FirstPort == 0 {
				return net.JoinHostPort(host, "0")
			}
			return net.JoinHostPort(host, strconv.Itoa(s.FirstPort+s.PortStep*len(out)+k))
		}
		o.HTTP, o.Peer, o.Gossip, o.Admin = port(0), port(1), port(2), port(3)
		out = append(out, Member{Role: role, Region: region, Name: name, options: o})
	}
	for i := range s.EdgesPerRegion {
		for _, region := range s.Regions {
			add(certs.RoleEdge, region, fmt.Sprintf("%s-edge-%d", region, i+1))
		}
	}
	for i := range s.Voters {
		region := s.Regions[i%len(s.Regions)]
		add(certs.RoleVoter, region, fmt.Sprintf("%s-voter-%d", region, i/len(s.Regions)+1))
	}
	return out
}

// Dir is the data directory of node i.
func (m *Mesh) Dir(i int) string { return m.Members[i].options.DataDir }

// Ready waits until every node serves.
func (m *Mesh) Ready(ctx context.Context) error {
	for i, n := range m.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return fmt.Errorf("%s is not ready: %w", m.Members[i].Name, err)
		}
	}
	return nil
}

// Stop ends all nodes, the edges first, and cuts what is still under way when ctx ends.
func (m *Mesh) Stop(ctx context.Context) error {
	errs := make([]error, len(m.Nodes))
	var edges, voters sync.WaitGroup
	for i, n := range m.Nodes {
		if m.Members[i].Role == certs.RoleEdge {
			edges.Go(func() { errs[i] = n.Stop(ctx) })
		}
	}
	edges.Wait()
	for i, n := range m.Nodes {
		if m.Members[i].Role != certs.RoleEdge {
			voters.Go(func() { errs[i] = n.Stop(ctx) })
		}
	}
	voters.Wait()
	for _, s := range m.shapers {
		s.Close()
	}
	m.Nodes = nil
	return errors.Join(errs...)
}

// Restart replaces node i by a new one with the same data directory and addresses. The old one must have been stopped.
func (m *Mesh) Restart(i int) error {
	n, err := node.New(m.Members[i].options)
	if err != nil {
		return err
	}
	m.Nodes[i] = n
	return n.Start()
}

// TempDir makes the data directory of a mesh that is not kept.
func TempDir() (string, error) { return os.MkdirTemp("", "kvmesh-dev-") }
