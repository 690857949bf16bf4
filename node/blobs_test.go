package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	"kvmesh/node/wire"
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

// A client's reader goes on at the next copy where one breaks off, is missing or cannot be opened, and never gives a byte
// that is not the value's.
func TestReadPastBadCopies(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	bad := []int{0, 3, 20, 1000, seal.SegmentSize - 1, seal.SegmentSize, 3*seal.SegmentSize + 5, someSegments - 1}
	for _, at := range bad {
		it := r.item(someSegments)
		r.store("a", it, wrong(it, at))
		r.store("c", it, it.sealed) // b lacks it
		for _, offset := range []int64{0, 5, seal.SegmentSize - 10, 3 * seal.SegmentSize, someSegments - 1, someSegments} {
			r.reads(fmt.Sprintf("byte %d is wrong, from %d on", at, offset), r.edge, it, offset)
		}
	}

	it := r.item(someSegments)
	for _, name := range r.names {
		r.store(name, it, it.sealed)
	}
	for _, at := range []int64{1, 2000, 5000, 100_000, 200_000, 330_000} {
		r.cutAt.Store(at)
		r.reads(fmt.Sprintf("the line breaks after %d bytes", at), r.edge, it, 0)
	}

	// Each has another bad segment: together they have the value.
	it = r.item(someSegments)
	r.store("a", it, wrong(it, 2*seal.SegmentSize))
	r.store("b", it, wrong(it, 3*seal.SegmentSize))
	r.store("c", it, wrong(it, 4*seal.SegmentSize))
	r.reads("three bad copies", r.edge, it, 0)

	it = r.item(someSegments) // nobody has a good one: an error, and no wrong byte
	for _, name := range r.names {
		r.store(name, it, wrong(it, 2*seal.SegmentSize+7))
	}
	v, err := r.open(r.edge, it, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(v)
	if kv.CodeOf(err) != kv.CodeUnavailable || !bytes.HasPrefix(it.plain, got) || len(got) < seal.SegmentSize {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n, again := v.Read(make([]byte, 10)); n != 0 || again == nil {
		t.Errorf("read on after the end: %d, %v", n, again)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.open(r.edge, r.item(100), 0); !errors.Is(err, fs.ErrNotExist) || kv.CodeOf(err) != kv.CodeUnavailable {
		t.Errorf("nobody has it: %v", err)
	}
}

// A part of a value is read over one connection, and costs its own segments and the header's.
func TestReadMiddle(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	it := r.item(50 * seal.SegmentSize)
	r.store("a", it, it.sealed)
	for _, part := range []span{
		{30 * seal.SegmentSize, 100},
		{30 * seal.SegmentSize, 3 * seal.SegmentSize},
		{0, 1},
		{10, seal.SegmentSize},
		{50*seal.SegmentSize - 7, 7},
		{50*seal.SegmentSize - seal.SegmentSize, 1000},
		{seal.SegmentSize, 0},
	} {
		r.dials.Store(0)
		r.received.Store(0)
		v, err := r.openPart(r.edge, it, part)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(v)
		if err := errors.Join(err, v.Close()); err != nil || !bytes.Equal(got, it.plain[part.offset:][:part.length]) {
			t.Errorf("%+v: %d bytes, %v", part, len(got), err)
		}
		if n := r.dials.Load(); n != 1 {
			t.Errorf("%+v: %d connections", part, n)
		}
		// The first segment, those of the part, at most one more on each side, and what TLS adds.
		if n, most := r.received.Load(), part.length+4*seal.SegmentSize+20_000; n > most {
			t.Errorf("%+v: %d bytes came, at most %d should", part, n, most)
		}
	}
}

// Where no voter is known a value is refused for now, and is not said to be gone.
func TestReadWithoutVoters(t *testing.T) {
	r := newBlobRig(t)
	_, err := r.open(r.edge, r.item(100), 0)
	if e := new(kv.Error); !errors.As(err, &e) || e.Code != kv.CodeUnavailable || e.RetryAfter == 0 || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A voter that lacks a value gives it all the same, from the others, and fetches it; asked for its own copy it says no.
func TestVotersGiveWhatTheyLack(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	it := r.item(someSegments)
	r.store("c", it, it.sealed)
	only := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a"}}, r.edge.dialer, r.edge.log)
	if _, err := r.open(only, it, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a value that nothing names: %v", err)
	}
	if n := r.voters["c"].keeper.MissingBlobs(); n != 0 {
		t.Errorf("c lacks %d", n)
	}
	r.name(it, "a")
	r.reads("through a voter that lacks it", only, it, 0)
	r.reads("at that voter", r.voters["a"].blobTransfer, it, 70_000)
	r.eventually("fetched", func() error {
		if n := r.voters["a"].keeper.MissingBlobs(); n != 0 {
			return fmt.Errorf("%d are missing", n)
		}
		return nil
	})
	r.reads("when it is there", only, it, 0)
	if _, _, err := only.ask(t.Context(), "a", blob.Ref{Namespace: blobSpace, ID: kv.NewBlobID()}, 0, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("own copies only: %v", err)
	}
	for _, offset := range []int64{-1, int64(len(it.sealed)) + 1} {
		if _, _, err := only.ask(t.Context(), "a", it.ref, offset, true); err == nil {
			t.Errorf("offset %d was taken", offset)
		}
	}
}

// A file in which a bit has flipped is not given to anybody: its voter gives the rest from another one, and replaces it. So
// it does with a copy whose file is well and that cannot be opened, once another voter's has proven that.
func TestVotersReplaceDamage(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	flipped, foreign := r.item(someSegments), r.item(someSegments+1)
	foreign.key = "other"
	s, err := r.key.SealingReader(blobSpace, foreign.key, foreign.id, bytes.NewReader(foreign.plain))
	if err != nil {
		t.Fatal(err)
	}
	if foreign.sealed, err = io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	a := r.voters["a"]
	for _, it := range []*item{flipped, foreign} {
		r.store("b", it, it.sealed)
	}
	r.store("a", flipped, flipped.sealed)
	r.store("a", foreign, wrong(foreign, 3*seal.SegmentSize))
	r.name(flipped, "a")
	_, err = a.state.Apply([]state.Entry{{Index: 2, Term: 1, Batch: command.Batch{MeshTime: 1, Ops: []command.Op{
		{Kind: command.KindPut, Namespace: blobSpace, Key: foreign.key, WriteID: foreign.id, Size: int64(len(foreign.plain)), Blob: foreign.ref.ID},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/blobs/%s/%s", blobSpace, flipped.ref.ID)
	f, err := a.disk.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(2*seal.SegmentSize + 9)
	if _, err := f.WriteAt([]byte{flipped.sealed[at] ^ 4}, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	only := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a"}}, r.edge.dialer, r.edge.log)
	r.reads("through the voter with the damaged file", only, flipped, 0)
	r.reads("at that voter", a.blobTransfer, flipped, 0)
	r.reads("a copy that cannot be opened", a.blobTransfer, foreign, 0)
	for _, it := range []*item{flipped, foreign} {
		r.eventually("replaced", func() error {
			f, err := a.local.Open(blobSpace, it.ref.ID)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(f)
			if err == nil && !bytes.Equal(got, it.sealed) {
				err = errors.New("it still holds other bytes")
			}
			return errors.Join(err, f.Close())
		})
	}
	aside := 0
	err = a.local.Damaged(func(blob.Ref, string, time.Time) error { aside++; return nil })
	if err != nil || aside != 2 {
		t.Errorf("%d files were moved aside, %v", aside, err)
	}
}

// An upload ends with a quorum of files, whoever of the voters is missing, and without one it fails and says so.
func TestUpload(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	it := r.item(someSegments)
	upload := func(by *blobTransfer, it *item) error {
		return by.put(t.Context(), blobSpace, it.ref.ID, bytes.NewReader(it.sealed))
	}
	if err := upload(r.voters["b"].blobTransfer, it); err != nil {
		t.Fatal(err)
	}
	have := func(it *item) (n int) {
		for _, v := range r.voters {
			f, err := v.local.Open(blobSpace, it.ref.ID)
			if err != nil {
				continue
			}
			got, err := io.ReadAll(f)
			if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, it.sealed) {
				t.Errorf("%s holds other bytes: %v", v.self, err)
			}
			n++
		}
		return n
	}
	if n := have(it); n < 2 {
		t.Errorf("acknowledged, and %d voters have it", n)
	}

	gone := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a", "b", "gone"}}, r.edge.dialer, r.edge.log)
	t.Cleanup(gone.lanes.Wait)
	it = r.item(10)
	if err := upload(gone, it); err != nil || have(it) != 2 {
		t.Errorf("one of three is gone: %v, %d have it", err, have(it))
	}
	gone.dir = fixed{"edge", []string{"a", "gone", "lost"}}
	if err := upload(gone, r.item(someSegments)); kv.CodeOf(err) != kv.CodeNoQuorum {
		t.Errorf("two of three are gone: %v", err)
	}
	it = r.item(someSegments)
	err := r.edge.put(t.Context(), blobSpace, it.ref.ID, io.MultiReader(bytes.NewReader(it.sealed[:100_000]), failedReader{errors.New("the client is gone")}))
	if err == nil || have(it) != 0 {
		t.Errorf("half a value: %v, %d have it", err, have(it))
	}
	if n := len(r.edge.chunks.tokens) + len(gone.chunks.tokens); n != 0 {
		r.eventually("buffers", func() error {
			if n := len(r.edge.chunks.tokens) + len(gone.chunks.tokens); n != 0 {
				return fmt.Errorf("%d buffers were not given back", n)
			}
			return nil
		})
	}

	// With no buffer free an upload waits, and then says why it does not go on.
	for range cap(r.edge.chunks.tokens) {
		r.edge.chunks.tokens <- struct{}{}
	}
	if err := upload(r.edge, r.item(10)); kv.CodeOf(err) != kv.CodeOverloaded {
		t.Errorf("no memory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.edge.chunks.get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the client has gone: %v", err)
	}
}

// A voter serves a bounded number of connections, and tells the others so.
func TestBlobServesAreBounded(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	it := r.item(100)
	r.store("a", it, it.sealed)
	r.store("b", it, it.sealed)
	for range cap(r.voters["a"].serves) {
		r.voters["a"].serves <- struct{}{}
	}
	if _, _, err := r.edge.ask(t.Context(), "a", it.ref, 0, true); kv.CodeOf(err) != kv.CodeOverloaded {
		t.Errorf("one too many: %v", err)
	}
	r.reads("a busy voter is passed over", r.edge, it, 0)
}

// What does not keep to the protocol ends the connection, or is told why not; nothing is stored.
func TestBlobProtocolErrors(t *testing.T) {
	r := newBlobRig(t, "a")
	say := func(frames ...func(blobConn) error) error {
		t.Helper()
		conn, err := r.edge.dial(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.hangUp()
		for _, f := range frames {
			if err := f(conn); err != nil {
				return err
			}
		}
		return conn.receive(wire.BlobDone, nil)
	}
	ref := &wire.BlobRef{Namespace: blobSpace, Blob: kv.NewBlobID()}
	begin := func(c blobConn) error { return c.send(wire.BlobPut, ref) }
	data := func(c blobConn) error { return peer.WriteFrame(c, wire.BlobData, []byte("data")) }
	end := func(n int64) func(blobConn) error {
		return func(c blobConn) error { return c.send(wire.BlobEnd, &wire.BlobTotal{Size: n}) }
	}
	for name, err := range map[string]error{
		"a wrong size":     say(begin, data, end(5)),
		"an unknown frame": say(func(c blobConn) error { return c.send(77, ref) }),
		"data first":       say(data),
		"a strange frame":  say(begin, data, func(c blobConn) error { return c.send(wire.BlobStat, ref) }),
		"no reference":     say(func(c blobConn) error { return peer.WriteFrame(c, wire.BlobGet, []byte{0xc1}) }),
		"not there":        say(func(c blobConn) error { return c.send(wire.BlobStat, ref) }),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := say(begin, data, end(4)); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if err := say(begin, data, end(4)); err == nil {
		t.Error("the same one again was taken")
	}
	v := r.voters["a"]
	if names, err := v.disk.List("/blobs/tmp"); err != nil || len(names) != 0 {
		t.Errorf("left are %v, %v", names, err)
	}
}
