package blobkeep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
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

// What the state names and the disk lacks, or has with another length, is found at the start and fetched.
func TestScan(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b", "c")
		v := newVoter(t, p)
		for n := range 6 {
			v.apply(put(n))
			store(t, p.all[n%2].store, n)
		}
		store(t, v.store, 0)
		store(t, v.store, 1)
		v.end()
		w, err := v.disk.Create(fmt.Sprintf("/blobs/%s/%s", ns, id(2)), vfs.WriteCategoryUnspecified)
		if err == nil {
			_, err = w.Write([]byte("cut"))
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		v.open()
		v.missing("before anybody has looked", 1)
		v.run()
		synctest.Wait()
		v.missing("at once", 0)
		v.check("after the scan", 0, 1, 2, 3, 4, 5)
		if v.metric("fetched_total") != 4 || v.metric("damaged_total") != 1 || v.metric("fetch_failures_total") != 0 {
			t.Errorf("fetched %v, damaged %v, failures %v", v.metric("fetched_total"), v.metric("damaged_total"), v.metric("fetch_failures_total"))
		}
	})
}

// A commit that names a blob which did not come here has it fetched; one that is still on its way is waited for; one that is
// released is not looked for any more.
func TestCommits(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		v := newVoter(t, p)
		v.run()
		synctest.Wait()
		v.missing("nothing is named", 0)

		store(t, p.all[0].store, 1)
		store(t, v.store, 2)
		v.apply(put(1), put(2))
		synctest.Wait()
		v.missing("named", 0)
		v.check("named", 1, 2)

		w, err := v.store.Create(ns, id(3))
		if err != nil {
			t.Fatal(err)
		}
		store(t, p.all[0].store, 3)
		v.apply(put(3))
		time.Sleep(10 * uploadPause)
		v.missing("while it is being written", 1)
		if _, err := w.Write(content(3)); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * uploadPause)
		v.missing("written", 0)
		if got := p.log(); !slices.Equal(got, []string{"b 1 0"}) {
			t.Errorf("fetched %v", got)
		}

		if w, err = v.store.Create(ns, id(4)); err != nil {
			t.Fatal(err)
		}
		store(t, p.all[0].store, 4)
		v.apply(put(4))
		time.Sleep(2 * uploadPause)
		if err := w.Abort(); err != nil { // the upload to this voter was given up
			t.Fatal(err)
		}
		time.Sleep(2 * uploadPause)
		v.missing("an upload that was given up", 0)
		v.check("an upload that was given up", 1, 2, 3, 4)

		p.set(0, func(p *peer) { p.down = true })
		v.apply(put(5))
		time.Sleep(time.Minute)
		v.missing("nobody has it", 1)
		v.apply(del(5))
		v.missing("it is not needed any more", 0)
		asked := len(p.opened())
		time.Sleep(10 * time.Minute)
		if len(p.opened()) != asked {
			t.Error("still being asked for")
		}
	})
}

// A fetch that breaks goes on where it was: at the next voter, at the next attempt, and after the process was ended.
func TestFetchGoesOn(t *testing.T) {
	virtual(t, func(t *testing.T) {
		const n = 7 // 350,000 bytes
		p := newPeers(t, "lacks it", "breaks", "liar")
		store(t, p.all[1].store, n)
		store(t, p.all[2].store, n)
		p.set(1, func(p *peer) { p.cut = 100_000 })
		p.set(2, func(p *peer) { p.lie = 1 })
		v := newVoter(t, p)
		v.run()
		v.apply(put(n))
		synctest.Wait()
		v.missing("after the first attempt", 1)
		if _, err := v.store.Open(ns, id(n)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("half a blob is visible: %v", err)
		}
		v.end()
		v.open()
		v.run()
		synctest.Wait()
		v.missing("after the restart", 1)
		p.set(2, func(p *peer) { p.lie = 0 })
		time.Sleep(time.Minute)
		v.missing("in the end", 0)
		v.check("in the end", n)
		want := []string{"breaks 7 0", "breaks 7 65536", "breaks 7 131072", "liar 7 196608"}
		if got := p.log(); !slices.Equal(got, want) {
			t.Errorf("asked %v, want %v", got, want)
		}
		if v.metric("resumed_bytes_total") != 196608 {
			t.Errorf("%v bytes were there already", v.metric("resumed_bytes_total"))
		}
	})
}

// A voter whose blob is damaged gives its bytes to nobody; what it had given is good, and others give the rest.
func TestFetchFromDamaged(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "damaged", "other")
		other := newVoter(t, p)
		store(t, other.store, 3)
		other.damage(3)
		p.all[0].store = other.store
		store(t, p.all[1].store, 3)
		v := newVoter(t, p)
		v.run()
		v.apply(put(3))
		synctest.Wait()
		v.check("fetched", 3)
		if got := p.log(); !slices.Equal(got, []string{"damaged 3 0", "other 3 65536"}) {
			t.Errorf("asked %v", got)
		}
	})
}

// While nobody can give a blob the pauses grow, and a few are fetched at a time.
func TestRetries(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.down = true })
		v := newVoter(t, p)
		v.run()
		v.apply(put(1))
		time.Sleep(time.Hour)
		times := p.opened()
		if n := len(times); n < int(time.Hour/(2*lastPause)) || n > int(2*time.Hour/lastPause) {
			t.Errorf("asked %d times in an hour", n)
		}
		for i := 1; i < 5; i++ {
			if gap := times[i].Sub(times[i-1]); gap < firstPause/2 || gap > firstPause<<i {
				t.Errorf("pause %d was %v", i, gap)
			}
		}
		for n := range 20 {
			store(t, p.all[0].store, n)
		}
		p.set(0, func(p *peer) { p.down, p.delay = false, time.Second })
		time.Sleep(2 * lastPause)
		v.missing("when it is back", 0)
		p.mu.Lock()
		p.times = nil
		p.mu.Unlock()
		var ops []command.Op
		for n := range 19 {
			ops = append(ops, put(n+1))
		}
		v.apply(ops[1:]...)
		time.Sleep(500 * time.Millisecond)
		if len(p.opened()) != parallel {
			t.Errorf("%d fetches at once", len(p.opened()))
		}
		v.missing("on their way", 18)
		time.Sleep(10 * time.Second)
		v.missing("all", 0)
	})
}

// The list has bounds; what it has no room for is counted, and found when there is room.
func TestManyMissing(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.down = true })
		v := newVoter(t, p)
		var ops []command.Op
		var want []int
		for n := range 50 {
			ops = append(ops, put(n))
			want = append(want, n)
			store(t, p.all[0].store, n)
		}
		v.apply(ops...)
		v.keeper.limit = 10
		v.run()
		time.Sleep(time.Second)
		v.missing("more than the list holds", 50)
		if len(v.keeper.missing) != 10 {
			t.Errorf("%d are listed", len(v.keeper.missing))
		}
		p.set(0, func(p *peer) { p.down = false })
		time.Sleep(10 * time.Minute)
		v.missing("in the end", 0)
		v.check("in the end", want...)

		v.apply(func() (ops []command.Op) { // more than the queue holds
			for n := range 50 {
				ops = append(ops, put(100+n))
				want = append(want, 100+n)
				store(t, p.all[0].store, 100+n)
			}
			return ops
		}()...)
		time.Sleep(10 * time.Minute)
		v.missing("after a large commit", 0)
		v.check("after a large commit", want...)
	})
}

// A checkpoint that takes the state's place names other blobs: they are missing from the moment it does.
func TestReplaced(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		p.set(0, func(p *peer) { p.delay = time.Second })
		v := newVoter(t, p)
		store(t, v.store, 1)
		v.run()
		v.apply(put(1))
		synctest.Wait()
		v.missing("before", 0)

		ahead := newVoter(t, newPeers(t))
		for n := 2; n < 9; n++ {
			store(t, p.all[0].store, n)
			ahead.apply(put(n))
		}
		if _, err := ahead.st.Checkpoint("/checkpoint"); err != nil {
			t.Fatal(err)
		}
		if _, err := vfs.Clone(ahead.disk, v.disk, "/checkpoint", "/checkpoint"); err != nil {
			t.Fatal(err)
		}
		v.st.Observe(func(c state.Committed) {
			v.keeper.Observe(c)
			if n := v.keeper.MissingBlobs(); c.Replaced && n == 0 { // whoever asks in between is told
				t.Error("nothing is missing just after the state was replaced")
			}
			time.Sleep(10 * time.Millisecond) // the keeper looks before readers see it
		})
		if err := v.st.Replace("/checkpoint"); err != nil {
			t.Fatal(err)
		}
		v.index = ahead.index
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		v.missing("after it was replaced", 7)
		time.Sleep(time.Minute)
		v.missing("later", 0)
		v.check("later", 1, 2, 3, 4, 5, 6, 7, 8)
		v.apply(put(9)) // the work goes on
		store(t, p.all[0].store, 9)
		time.Sleep(time.Minute)
		v.missing("in the end", 0)
	})
}

// What a reader finds damaged is looked at, moved aside and fetched again; what it finds missing is fetched.
func TestReports(t *testing.T) {
	virtual(t, func(t *testing.T) {
		p := newPeers(t, "b")
		v := newVoter(t, p)
		for n := 1; n <= 4; n++ {
			store(t, v.store, n)
			store(t, p.all[0].store, n)
			v.apply(put(n))
		}
		store(t, v.store, 5) // not named
		v.run()
		synctest.Wait()
		v.damage(1)
		v.damage(5)
		if err := v.store.Delete(ns, id(2)); err != nil {
			t.Fatal(err)
		}
		for n := 1; n <= 5; n++ {
			v.keeper.Report(ns, id(n), n == 4)
			v.keeper.Report(ns, id(n), false)
		}
		synctest.Wait()
		v.missing("reported", 0)
		v.check("reported", 1, 2, 3, 4)
		if got := p.log(); len(got) != 3 || strings.Contains(strings.Join(got, ","), "b 3") {
			t.Errorf("fetched %v", got)
		}
		aside := func() (refs []blob.Ref) {
			if err := v.store.Damaged(func(r blob.Ref, _ string, _ time.Time) error { refs = append(refs, r); return nil }); err != nil {
				t.Fatal(err)
			}
			return refs
		}
		if got := aside(); len(got) != 3 || !slices.Contains(got, ref(1)) || !slices.Contains(got, ref(4)) || !slices.Contains(got, ref(5)) {
			t.Errorf("moved aside: %v", got)
		}
		time.Sleep(asideAge - time.Hour)
		if got := aside(); len(got) != 3 {
			t.Errorf("after less than a day: %v", got)
		}
		time.Sleep(2 * time.Hour)
		if got := aside(); len(got) != 0 {
			t.Errorf("after a day: %v", got)
		}

		// The last copy is kept, whatever it is worth.
		p.set(0, func(p *peer) { p.down = true })
		v.damage(1)
		v.keeper.Report(ns, id(1), false)
		time.Sleep(3 * asideAge)
		if got := aside(); !slices.Equal(got, []blob.Ref{ref(1)}) {
			t.Errorf("nobody has another copy, and aside are %v", got)
		}
		v.missing("nobody has another copy", 1)
		for range 3 * maxReports {
			v.keeper.Report(ns, kv.NewBlobID(), false)
		}
		if n := len(v.keeper.reports); n > maxReports {
			t.Errorf("%d reports wait", n)
		}
		synctest.Wait()
	})
}
