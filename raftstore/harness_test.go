package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// network joins the stores of one test by pipes in memory. Links can be cut, and what one side says can be held back.
type network struct {
	mu    sync.Mutex // guards all below
	nodes map[string]*endpoint
	cut   map[string]bool
	held  map[[3]string]*dam // {speaker, listener, who opened the connection}
	conns map[*link]struct{}
}

func newNetwork() *network {
	return &network{
		nodes: make(map[string]*endpoint), cut: make(map[string]bool),
		held: make(map[[3]string]*dam), conns: make(map[*link]struct{}),
	}
}

// endpoint is the StreamLayer of one node.
type endpoint struct {
	n        *network
	id       string
	incoming chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (n *network) listen(id string) *endpoint {
	e := &endpoint{n: n, id: id, incoming: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[id] = e
	return e
}

func (e *endpoint) Addr() net.Addr { return nodeAddr(e.id) }
func (e *endpoint) Close() error   { e.once.Do(func() { close(e.closed) }); return nil }

func (e *endpoint) Accept() (net.Conn, error) {
	select {
	case c := <-e.incoming:
		return c, nil
	case <-e.closed:
		return nil, net.ErrClosed
	}
}

func (e *endpoint) DialNode(ctx context.Context, id string) (net.Conn, error) {
	e.n.mu.Lock()
	to, cut := e.n.nodes[id], e.n.cut[id] || e.n.cut[e.id]
	e.n.mu.Unlock()
	if to == nil || cut {
		return nil, errors.New("unreachable")
	}
	a, b := net.Pipe()
	here := &link{Conn: a, n: e.n, speaker: e.id, listener: id, dialer: e.id, closed: make(chan struct{})}
	there := &link{Conn: b, n: e.n, speaker: id, listener: e.id, dialer: e.id, closed: make(chan struct{})}
	e.n.mu.Lock()
	e.n.conns[here], e.n.conns[there] = struct{}{}, struct{}{}
	e.n.mu.Unlock()
	select {
	case to.incoming <- there:
		return here, nil
	case <-to.closed:
		return nil, errors.Join(errors.New("refused"), here.Close(), there.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), here.Close(), there.Close())
	}
}

type link struct {
	net.Conn
	n                         *network
	speaker, listener, dialer string
	closed                    chan struct{}
	once                      sync.Once
	greeted                   atomic.Bool // the first write, a greeting, is never held back: connections can still be opened
}

func (l *link) Write(p []byte) (int, error) {
	l.n.mu.Lock()
	var turn chan struct{}
	if held := l.n.held[[3]string{l.speaker, l.listener, l.dialer}]; held != nil && l.greeted.Load() {
		turn = make(chan struct{})
		held.turns = append(held.turns, turn)
	}
	l.n.mu.Unlock()
	if turn != nil {
		select {
		case <-turn:
		case <-l.closed:
		}
	}
	l.greeted.Store(true)
	return l.Conn.Write(p)
}

func (l *link) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		delete(l.n.conns, l)
		l.n.mu.Unlock()
	})
	return l.Conn.Close()
}

// isolate cuts a node off, join undoes it.
func (n *network) isolate(id string) {
	n.mu.Lock()
	n.cut[id] = true
	var gone []*link
	for c := range n.conns {
		if c.speaker == id || c.listener == id {
			gone = append(gone, c)
		}
	}
	n.mu.Unlock()
	for _, c := range gone {
		_ = c.Close()
	}
}

func (n *network) join(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, id)
}

// dam holds what is said in one direction.
type dam struct {
	turns []chan struct{} // of the writes that wait, the oldest first; guarded by the network's lock
}

// hold keeps back what speaker says to listener on connections that dialer has opened, until release is called. Then it
// arrives in the order in which it was said, each word only when the one before has had its whole effect.
func (n *network) hold(speaker, listener, dialer string) (release func()) {
	link := [3]string{speaker, listener, dialer}
	n.mu.Lock()
	defer n.mu.Unlock()
	held := new(dam)
	n.held[link] = held
	return func() {
		n.mu.Lock()
		delete(n.held, link)
		turns := held.turns
		n.mu.Unlock()
		for _, turn := range turns {
			close(turn)
			synctest.Wait()
		}
	}
}

// cluster is a few stores on one network, with logs in memory and states on disk.
type cluster struct {
	t     *testing.T
	net   *network
	logs  LogStore
	dirs  map[string]string
	nodes map[string]*Store
	adapt func(id string, o *Options) // changes the options of a node before it opens
	ns    kv.NamespaceID
}

func newCluster(t *testing.T, ids ...string) *cluster {
	c := &cluster{
		t: t, net: newNetwork(), logs: MemoryLog(), dirs: make(map[string]string), nodes: make(map[string]*Store),
		ns: kv.NewNamespaceID(), adapt: func(string, *Options) {},
	}
	for _, id := range ids {
		c.dirs[id] = t.TempDir()
	}
	return c
}

// start opens every node and bootstraps them as voters.
func (c *cluster) start() *cluster {
	c.t.Helper()
	var ids []string
	for id := range c.dirs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		c.open(id)
	}
	if err := c.nodes[ids[0]].Bootstrap(ids); err != nil {
		c.t.Fatal(err)
	}
	return c
}

func (c *cluster) options(id string) Options {
	o := Options{
		Dir: c.dirs[id], NodeID: id, Stream: c.net.listen(id), Profile: ProfileTest,
		MeshNow:  func() int64 { return time.Now().UnixMilli() },
		LogStore: c.logs, KEK: testKEK(c.t),
		Fatal: func(err error) { c.t.Errorf("%s: fatal: %v", id, err) },
		Init: func() (command.Op, error) {
			return command.Op{
				Kind: command.KindInit, Cluster: kv.NewClusterID(), Epoch: kv.NewEpoch(time.Now().UnixMilli(), kv.Epoch{}),
				Namespace: c.ns, Title: "default", WrappedKey: []byte("key"),
			}, nil
		},
	}
	c.adapt(id, &o)
	return o
}

func testKEK(t testing.TB) *seal.KEK {
	kek, err := seal.NewKEK(make([]byte, seal.KEKBytes))
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

func (c *cluster) open(id string) *Store {
	c.t.Helper()
	s, err := Open(c.t.Context(), c.options(id))
	if err != nil {
		c.t.Fatalf("open %s: %v", id, err)
	}
	c.nodes[id] = s
	c.t.Cleanup(func() { c.closeStore(s) })
	return s
}

func (c *cluster) closeStore(s *Store) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		c.t.Errorf("close %s: %v", s.opts.NodeID, err)
	}
}

func (c *cluster) stop(id string) {
	c.closeStore(c.nodes[id])
	delete(c.nodes, id)
}

// leader waits for a node that leads and has done so long enough to prove it.
func (c *cluster) leader(except ...string) *Store {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	for {
		for id, s := range c.nodes {
			if _, self := s.Leader(); !self || slices.Contains(except, id) {
				continue
			}
			try, stop := context.WithTimeout(ctx, time.Second)
			_, err := s.Confirm(try)
			stop()
			if err == nil && !s.State().Applied().Cluster.IsZero() {
				return s
			}
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			c.t.Fatal("no leader")
		}
	}
}

func (c *cluster) follower() *Store {
	lead := c.leader()
	for _, s := range c.nodes {
		if s != lead {
			return s
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (c *cluster) put(key, value string) command.Op {
	return command.Op{
		Kind: command.KindPut, Namespace: c.ns, Key: key, WriteID: kv.NewWriteID(), Value: []byte(value), Size: int64(len(value)),
	}
}

func (c *cluster) mustPut(s *Store, key, value string) command.Result {
	c.t.Helper()
	res, err := s.Propose(c.t.Context(), []command.Op{c.put(key, value)})
	if err != nil || res.Ops[0].Code != "" {
		c.t.Fatalf("put %s: %v %v", key, res, err)
	}
	return res
}

func (c *cluster) get(s *Store, key string) string {
	c.t.Helper()
	item, _, err := s.State().Get(c.ns, key, false)
	if err != nil {
		c.t.Fatalf("get %s on %s: %v", key, s.opts.NodeID, err)
	}
	return string(item.Value)
}

// converge waits until every open node has the revision.
func (c *cluster) converge(rev kv.Revision) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 30*time.Second)
	defer cancel()
	for id, s := range c.nodes {
		if err := s.State().WaitRevision(ctx, rev); err != nil {
			c.t.Fatalf("%s stands at %+v, not at revision %d: %v", id, s.State().Applied(), rev, err)
		}
	}
}

func isCode(err error, codes ...kv.Code) bool {
	return err != nil && slices.Contains(codes, kv.CodeOf(err))
}

func virtual(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func key(i int) string { return fmt.Sprintf("key-%06d", i) }

// observed collects what one store's observer is told.
type observed struct {
	mu   sync.Mutex // guards recs
	recs []kv.Record
}

func (o *observed) see(c state.Committed) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recs = append(o.recs, c.Records...)
}

func (o *observed) records() []kv.Record {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.recs)
}
