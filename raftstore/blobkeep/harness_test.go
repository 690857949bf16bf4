package blobkeep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

var ns = kv.NamespaceID{1}

func id(n int) kv.BlobID     { return kv.BlobID{byte(n >> 8), byte(n), 15: 1} }
func ref(n int) blob.Ref     { return blob.Ref{Namespace: ns, ID: id(n)} }
func plainSize(n int) int64  { return int64(70<<10 + 40_000*(n%8)) }
func sealedSize(n int) int64 { return seal.SealedSize(plainSize(n)) }

// content of a blob, as long as the sealed form of its value.
func content(n int) []byte {
	b := make([]byte, sealedSize(n))
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b) // never fails
	return b
}

// voter is a state, a blob store and a keeper, on a disk in memory that outlives them.
type voter struct {
	t       *testing.T
	disk    vfs.FS
	st      *state.State
	store   *blob.Store
	keeper  *Keeper
	peers   *peers
	reg     *prometheus.Registry
	index   uint64
	mesh    atomic.Int64 // mesh time, ms
	term    atomic.Uint64
	current atomic.Bool
	stop    context.CancelFunc
	done    sync.WaitGroup
}

func newVoter(t *testing.T, p *peers) *voter {
	v := &voter{t: t, disk: vfs.NewMem(), peers: p}
	v.mesh.Store(1_000_000)
	v.term.Store(1)
	v.current.Store(true)
	v.open()
	t.Cleanup(v.end) // also when the test has failed in its middle
	v.apply(command.Op{Kind: command.KindInit, Cluster: kv.ClusterID{1}, Epoch: kv.Epoch{1}, Namespace: ns, Title: "default"})
	return v
}

// open is the start of the process, run that of its work, end its end.
func (v *voter) open() {
	v.t.Helper()
	var err error
	if v.store, err = blob.OpenFS(v.disk, "/blobs"); err != nil {
		v.t.Fatal(err)
	}
	v.reg = prometheus.NewRegistry()
	v.keeper, err = New(Options{
		Store: v.store, Peers: v.peers, MeshNow: v.mesh.Load, Term: v.term.Load,
		Current: v.current.Load, Metrics: v.reg,
	})
	if err != nil {
		v.t.Fatal(err)
	}
	if v.st, err = state.Open("/state", state.Options{FS: v.disk}); err != nil {
		v.t.Fatal(err)
	}
	v.st.Observe(v.keeper.Observe)
}

func (v *voter) run() {
	ctx, cancel := context.WithCancel(context.Background())
	v.stop = cancel
	v.done.Go(func() { v.keeper.Run(ctx, v.st) })
}

func (v *voter) end() {
	v.t.Helper()
	if v.stop != nil {
		v.stop()
		v.done.Wait()
		v.stop = nil
	}
	if err := v.st.Close(); err != nil && !errors.Is(err, state.ErrClosed) {
		v.t.Error(err)
	}
}

func (v *voter) apply(ops ...command.Op) {
	v.t.Helper()
	v.index++
	_, err := v.st.Apply([]state.Entry{{Index: v.index, Term: v.term.Load(), Batch: command.Batch{MeshTime: v.mesh.Load(), Ops: ops}}})
	if err != nil {
		v.t.Fatal(err)
	}
}

func put(n int) command.Op {
	return command.Op{Kind: command.KindPut, Namespace: ns, Key: fmt.Sprint("key", n), Size: plainSize(n), Blob: id(n)}
}

func del(n int) command.Op {
	return command.Op{Kind: command.KindDelete, Namespace: ns, Key: fmt.Sprint("key", n)}
}

// store writes a blob to a store.
func store(t *testing.T, s *blob.Store, n int) {
	t.Helper()
	w, err := s.Create(ns, id(n))
	if err == nil {
		_, err = w.Write(content(n))
	}
	if err == nil {
		err = w.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// check fails unless exactly these blobs are on the disk, whole.
func (v *voter) check(what string, want ...int) {
	v.t.Helper()
	var have []int
	err := v.store.Walk(func(_ kv.NamespaceID, b kv.BlobID, _ int64, _ time.Time) error {
		n := int(b[0])<<8 | int(b[1])
		have = append(have, n)
		f, err := v.store.Open(ns, b)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(f)
		if !bytes.Equal(got, content(n)) {
			v.t.Errorf("%s: blob %d holds other bytes", what, n)
		}
		return errors.Join(err, f.Close())
	})
	slices.Sort(have)
	if err != nil || !slices.Equal(have, want) {
		v.t.Errorf("%s: blobs %v are on the disk, want %v (%v)", what, have, want, err)
	}
}

func (v *voter) missing(what string, want int) {
	v.t.Helper()
	if got := v.keeper.MissingBlobs(); got != want {
		v.t.Errorf("%s: %d blobs are missing, want %d", what, got, want)
	}
}

func (v *voter) metric(name string) float64 {
	v.t.Helper()
	all, err := v.reg.Gather()
	if err != nil {
		v.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range all {
		if f.GetName() == "kvmesh_blobs_"+name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// damage flips a bit of a blob's file.
func (v *voter) damage(n int) {
	v.t.Helper()
	path := fmt.Sprintf("/blobs/%s/%s", ns, id(n))
	f, err := v.disk.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		v.t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, 66_000); err == nil {
		b[0] ^= 8
		_, err = f.WriteAt(b, 66_000)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		v.t.Fatal(err)
	}
}

// peers are the other voters.
type peers struct {
	mu    sync.Mutex // guards all below, and the peers
	all   []*peer
	asked []string // "voter blob offset", in order
	times []time.Time
}

type peer struct {
	name  string
	store *blob.Store
	down  bool
	cut   int64 // of each transfer, after so many bytes; 0 = never
	delay time.Duration
	lie   int64 // added to every size
}

func newPeers(t *testing.T, names ...string) *peers {
	p := &peers{}
	for _, name := range names {
		s, err := blob.OpenFS(vfs.NewMem(), "/blobs")
		if err != nil {
			t.Fatal(err)
		}
		p.all = append(p.all, &peer{name: name, store: s})
	}
	return p
}

func (p *peers) Voters() (names []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.all {
		names = append(names, v.name)
	}
	return names
}

func (p *peers) set(i int, change func(*peer)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p.all[i])
}

func (p *peers) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// opened is when each fetch began.
func (p *peers) opened() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.times)
}

func (p *peers) Open(ctx context.Context, name string, r blob.Ref) (Transfer, error) {
	p.mu.Lock()
	from := p.all[slices.IndexFunc(p.all, func(v *peer) bool { return v.name == name })]
	down, delay := from.down, from.delay
	t := &transfer{p: p, name: name, ref: r, cut: from.cut, lie: from.lie}
	p.times = append(p.times, time.Now())
	p.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if down {
		return nil, errors.New("unreachable")
	}
	var err error
	t.f, err = from.store.Open(r.Namespace, r.ID)
	return t, err
}

type transfer struct {
	p    *peers
	name string
	ref  blob.Ref
	f    *blob.File
	cut  int64
	lie  int64
}

func (t *transfer) Head() (int64, []byte) { return t.f.Size() + t.lie, t.f.Sums() }
func (t *transfer) Close() error          { return t.f.Close() }

func (t *transfer) From(_ context.Context, offset int64) (io.Reader, error) {
	t.p.mu.Lock()
	t.p.asked = append(t.p.asked, fmt.Sprintf("%s %d %d", t.name, int(t.ref.ID[0])<<8|int(t.ref.ID[1]), offset))
	t.p.mu.Unlock()
	if _, err := t.f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	if t.cut > 0 {
		return io.MultiReader(io.LimitReader(t.f, t.cut), brokenReader{}), nil
	}
	return t.f, nil
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func virtual(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
