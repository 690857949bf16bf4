package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/node/certs"
	"kvmesh/node/peer"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/blobkeep"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// blobRig is a few voters and an edge that have nothing but their large values, over real connections.
type blobRig struct {
	t      *testing.T
	key    *seal.DataKey
	names  []string // of the voters
	voters map[string]*blobVoter
	edge   *blobTransfer
	dials  atomic.Int64
	// received counts the bytes that came over the connections that were dialled.
	received atomic.Int64
	cutAt    atomic.Int64 // the next connection breaks after so many bytes; 0 = none does
}

type blobVoter struct {
	*blobTransfer
	disk vfs.FS
}

// fixed is a directory that never changes: self is not among those who can be asked.
type fixed struct {
	self  string
	names []string
}

func (f fixed) Configured() []string { return f.names }

func (f fixed) Voters() []string {
	return slices.DeleteFunc(slices.Clone(f.names), func(n string) bool { return n == f.self })
}

var blobSpace = kv.NamespaceID{5}

func newBlobRig(t *testing.T, names ...string) *blobRig {
	meshKey := certs.NewMeshKey()
	authority, err := meshKey.Authority()
	if err != nil {
		t.Fatal(err)
	}
	kek, err := seal.NewKEK(meshKey.KEK())
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := kek.NewDataKey(blobSpace)
	if err != nil {
		t.Fatal(err)
	}
	r := &blobRig{t: t, names: names, voters: map[string]*blobVoter{}}
	if r.key, err = kek.Unwrap(blobSpace, wrapped); err != nil {
		t.Fatal(err)
	}
	addrs := map[string]string{}
	transfer := func(name, role string) *blobTransfer {
		cert, err := authority.Issue(name, role)
		if err != nil {
			t.Fatal(err)
		}
		dialer := &peer.Dialer{
			Authority: authority, Cert: cert, DialContext: r.dial,
			Resolve: func(id string) (string, bool) { a, ok := addrs[id]; return a, ok },
		}
		bt := newBlobTransfer(t.Context(), name, fixed{name, names}, dialer, slog.New(slog.DiscardHandler))
		t.Cleanup(bt.lanes.Wait)
		if role == certs.RoleEdge {
			return bt
		}
		v := &blobVoter{bt, vfs.NewMem()}
		r.voters[name] = v
		r.openVoter(v)
		srv, err := peer.NewServer(peer.Options{Addr: "127.0.0.1:0", Authority: authority, Cert: cert})
		if err != nil {
			t.Fatal(err)
		}
		addrs[name] = srv.Addr().String()
		srv.Handle(peer.ALPNBlob, anyMember, bt.serve)
		served := make(chan error, 1)
		go func() { served <- srv.Serve(context.Background()) }()
		t.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel() // what is open is cut
			_ = srv.Close(ctx)
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		return bt
	}
	for _, name := range names {
		transfer(name, certs.RoleVoter)
	}
	r.edge = transfer("edge", certs.RoleEdge)
	return r
}

// openVoter gives a voter its store, a keeper that runs, and a state.
func (r *blobRig) openVoter(v *blobVoter) {
	var err error
	if v.local, err = blob.OpenFS(v.disk, "/blobs"); err != nil {
		r.t.Fatal(err)
	}
	v.keeper, err = blobkeep.New(blobkeep.Options{
		Store: v.local, Peers: blobPeers{v.blobTransfer}, MeshNow: func() int64 { return 1 },
		Term: func() uint64 { return 1 }, Current: func() bool { return true },
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if v.state, err = state.Open("/state", state.Options{FS: v.disk}); err != nil {
		r.t.Fatal(err)
	}
	v.state.Observe(v.keeper.Observe)
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { v.keeper.Run(ctx, v.state) })
	r.t.Cleanup(func() {
		cancel()
		run.Wait()
		if err := v.state.Close(); err != nil {
			r.t.Error(err)
		}
	})
}

func (r *blobRig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	r.dials.Add(1)
	c, err := new(net.Dialer).DialContext(ctx, network, addr)
	if at := r.cutAt.Swap(0); at > 0 && err == nil {
		return &cutConn{Conn: c, left: at}, nil
	}
	return countedConn{c, &r.received}, err
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// cutConn breaks after some bytes have been read.
type cutConn struct {
	net.Conn
	left int64
}

func (c *cutConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.Join(errors.New("the line is cut"), c.Close())
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	return n, err
}

// item is one large value.
type item struct {
	ref    blob.Ref
	key    string
	id     kv.WriteID
	plain  []byte
	sealed []byte
}

func (r *blobRig) item(size int) *item {
	r.t.Helper()
	it := &item{ref: blob.Ref{Namespace: blobSpace, ID: kv.NewBlobID()}, key: "k", id: kv.NewWriteID(), plain: make([]byte, size)}
	_, _ = rand.NewChaCha8([32]byte{byte(size)}).Read(it.plain) // never fails
	s, err := r.key.SealingReader(blobSpace, it.key, it.id, bytes.NewReader(it.plain))
	if err == nil {
		it.sealed, err = io.ReadAll(s)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return it
}

// store writes bytes as the value's blob on a voter's disk, whatever they are.
func (r *blobRig) store(name string, it *item, sealed []byte) {
	r.t.Helper()
	w, err := r.voters[name].local.Create(blobSpace, it.ref.ID)
	if err == nil {
		_, err = w.Write(sealed)
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// name makes the state of voters name the value's blob.
func (r *blobRig) name(it *item, names ...string) {
	r.t.Helper()
	for _, name := range names {
		st := r.voters[name].state
		_, err := st.Apply([]state.Entry{{Index: 1, Term: 1, Batch: command.Batch{MeshTime: 1, Ops: []command.Op{
			{Kind: command.KindInit, Cluster: kv.ClusterID{1}, Epoch: kv.Epoch{1}, Namespace: blobSpace, Title: "default"},
			{Kind: command.KindPut, Namespace: blobSpace, Key: it.key, WriteID: it.id, Size: int64(len(it.plain)), Blob: it.ref.ID},
		}}}})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// open opens a value as a node does for a client.
func (r *blobRig) open(at *blobTransfer, it *item, offset int64) (*largeValue, error) {
	return r.openPart(at, it, span{offset, int64(len(it.plain)) - offset})
}

func (r *blobRig) openPart(at *blobTransfer, it *item, part span) (*largeValue, error) {
	size := int64(len(it.plain))
	return at.openValue(r.t.Context(), it.ref, size, part, func(off int64, sealed func(int64) (io.ReadCloser, error)) (io.ReadCloser, error) {
		return r.key.OpenReader(blobSpace, it.key, it.id, seal.SealedSize(size), size, off, sealed)
	})
}

// reads fails unless a node gives a value's bytes from an offset on.
func (r *blobRig) reads(what string, at *blobTransfer, it *item, offset int64) {
	r.t.Helper()
	v, err := r.open(at, it, offset)
	if err != nil {
		r.t.Errorf("%s: %v", what, err)
		return
	}
	got, err := io.ReadAll(v)
	if err := errors.Join(err, v.Close()); err != nil || !bytes.Equal(got, it.plain[offset:]) {
		r.t.Errorf("%s: %d bytes of %d, equal: %t, %v", what, len(got), int64(len(it.plain))-offset, bytes.Equal(got, it.plain[offset:]), err)
	}
}

// eventually waits for something that a keeper does by itself.
func (r *blobRig) eventually(what string, look func() error) {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := look()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// wrong is a copy in which a bit of the sealed bytes is wrong, although what the disk holds is what was written to it.
func wrong(it *item, at int) []byte {
	b := bytes.Clone(it.sealed)
	b[at] ^= 2
	return b
}

const someSegments = 5*seal.SegmentSize + 1234
