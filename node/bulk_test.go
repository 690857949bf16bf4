package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// writeRig is the writing half of a node's service: a real cache and state, and a log that a test can hold up. It stands
// before the state as the mesh does: nothing that is committed reaches the cache but through the service.
type writeRig struct {
	*service
	store *storeRig
	ns    kv.Namespace
	hints []kv.Record

	mu     sync.Mutex                          // guards all below, and the state
	before func(n int, ops []command.Op) error // called outside of it, before proposal n is committed
	sizes  []int                               // operations of each proposal, in the order they came
	flying int
	most   int // that were on their way at a time
}

func newWriteRig(t *testing.T) *writeRig {
	kek, err := seal.NewKEK(make([]byte, seal.KEKBytes))
	if err != nil {
		t.Fatal(err)
	}
	r := &writeRig{store: newStoreRig(t), ns: kv.Namespace{ID: quiet, Title: "default"}}
	if r.ns.WrappedKey, err = kek.NewDataKey(quiet); err != nil {
		t.Fatal(err)
	}
	control := newControlState(kek, t.TempDir(), slog.New(slog.DiscardHandler))
	control.joined = func(kv.ClusterID) error { return nil }
	if err := control.take(kv.Control{Epoch: firstEpoch, Revision: 1, Namespaces: []kv.Namespace{r.ns}}); err != nil {
		t.Fatal(err)
	}
	all := cache.New(cache.Options{ // large enough for all that a test writes
		Bytes: 64 << 20, Asker: r.store, Metrics: prometheus.NewRegistry(), Clock: func() cache.Mono { return time.Hour },
		Logger: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(all.Close)
	r.service = &service{cache: all, control: control, proposer: r, bulk: newBulkGate()}
	r.service.hints = r
	r.cache.Adopt(firstEpoch, 1)
	return r
}

func (r *writeRig) send(rec kv.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hints = append(r.hints, rec)
}

func (r *writeRig) propose(ctx context.Context, ops []command.Op) (command.Result, error) {
	r.mu.Lock()
	r.sizes = append(r.sizes, len(ops))
	n, before := len(r.sizes), r.before
	r.flying++
	r.most = max(r.most, r.flying)
	r.mu.Unlock()
	var err error
	if before != nil {
		err = before(n, ops)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flying--
	if err != nil || ctx.Err() != nil {
		return command.Result{}, errors.Join(err, ctx.Err())
	}
	batch, err := command.Decode(command.Append(nil, &command.Batch{Ops: ops})) // as it travels
	if err != nil {
		return command.Result{}, err
	}
	return r.store.commit(batch)
}

// told collects outcomes by the name of the write, and that each came once.
type told struct {
	t    *testing.T
	mu   sync.Mutex // guards what follows
	res  map[string]api.WriteResult
	errs map[string]error
}

func newTold(t *testing.T) *told {
	return &told{t: t, res: map[string]api.WriteResult{}, errs: map[string]error{}}
}

func (o *told) of(name string) func(api.WriteResult, error) {
	return func(res api.WriteResult, err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if _, twice := o.res[name]; twice {
			o.t.Errorf("%s was told twice", name)
		}
		o.res[name], o.errs[name] = res, err
	}
}

// failed counts the writes with a code.
func (o *told) failed(code kv.Code) (n int) {
	for _, err := range o.errs {
		if kv.CodeOf(err) == code {
			n++
		}
	}
	return n
}

func (r *writeRig) stageText(t *testing.T, key, value string) api.Staged {
	t.Helper()
	v, err := r.Stage(t.Context(), api.StageRequest{Namespace: r.ns, Key: key, Body: strings.NewReader(value), Size: -1})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// puts makes n writes of the keys that name gives, each with its number as the value, at least size bytes long.
func (r *writeRig) puts(t *testing.T, o *told, n, size int, name func(int) string) iter.Seq2[api.Write, func(api.WriteResult, error)] {
	return func(yield func(api.Write, func(api.WriteResult, error)) bool) {
		for i := range n {
			v := r.stageText(t, name(i), fmt.Sprintf("%-*d", size, i))
			if !yield(api.Write{Namespace: r.ns, Key: name(i), Value: v}, o.of(fmt.Sprint(i))) {
				t.Error("the writes are not taken to their end")
				return
			}
		}
	}
}

// held reads a key without asking anybody.
func (r *writeRig) held(t *testing.T, key string) cache.Answer {
	t.Helper()
	ans, err := r.cache.Get(t.Context(), cache.Read{Namespace: quiet, Key: key, Limit: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return ans
}

// TestBulkChunks: writes go in chunks within an entry's limits, a few at a time, and each is told its own outcome, is held
// by the own cache, and hinted.
func TestBulkChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWriteRig(t)
		r.before = func(int, []command.Op) error { time.Sleep(time.Second); return nil }
		o := newTold(t)
		const n = 12_000
		if err := r.WriteEach(t.Context(), r.puts(t, o, n, 0, func(i int) string { return fmt.Sprint("k", i) })); err != nil {
			t.Fatal(err)
		}
		sum := 0
		for _, size := range r.sizes {
			if sum += size; size > kv.MaxBatchOps {
				t.Errorf("a chunk of %d operations", size)
			}
		}
		if sum != n || len(o.res) != n || r.most != bulkInFlight || len(r.sizes) > n/kv.MaxBatchOps+1 {
			t.Errorf("%d writes in %d chunks, %d told, %d at a time", sum, len(r.sizes), len(o.res), r.most)
		}
		revisions := map[kv.Revision]bool{}
		for i := range n {
			res := o.res[fmt.Sprint(i)]
			item, _, err := r.store.state.Get(quiet, fmt.Sprint("k", i), true)
			if err != nil || o.errs[fmt.Sprint(i)] != nil || item.Revision != res.Revision || res.AsOf < res.Revision || revisions[res.Revision] {
				t.Fatalf("write %d: %+v, the state has %+v: %v %v", i, res, item, o.errs[fmt.Sprint(i)], err)
			}
			revisions[res.Revision] = true
		}
		hinted := 0
		for _, rec := range r.hints {
			if hinted += len(rec.Hashes); int(rec.To-rec.Prev) != len(rec.Hashes) {
				t.Errorf("a hint of %d hashes covers (%d, %d]", len(rec.Hashes), rec.Prev, rec.To)
			}
		}
		if hinted != n {
			t.Errorf("%d of %d changes were hinted", hinted, n)
		}
		if ans := r.held(t, "k11999"); ans.Tier != cache.TierHit || strings.TrimSpace(string(ans.Entry.Value())) != "11999" {
			t.Errorf("the own cache: %+v", ans)
		}
		r.sizes = nil
		if err := r.WriteEach(t.Context(), r.puts(t, newTold(t), 9, 60<<10, func(i int) string { return fmt.Sprint("large", i) })); err != nil || len(r.sizes) != 3 {
			t.Errorf("nine writes of 60 KiB went in chunks of %v operations: %v", r.sizes, err)
		}
	})
}

// TestBulkOrder: writes of one key are carried out in their order, although later chunks reach the log sooner.
func TestBulkOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWriteRig(t)
		r.before = func(n int, _ []command.Op) error { time.Sleep(time.Duration(100-n) * time.Second); return nil }
		o := newTold(t)
		name := func(i int) string { // one key in every chunk, among others
			if i%4 == 1 {
				return "again"
			}
			return fmt.Sprint("k", i)
		}
		if err := r.WriteEach(t.Context(), r.puts(t, o, 40, 60<<10, name)); err != nil {
			t.Fatal(err)
		}
		last := kv.Revision(0)
		for i := 1; i < 40; i += 4 {
			if res := o.res[fmt.Sprint(i)]; res.Revision <= last {
				t.Errorf("write %d of the key has revision %d, after %d", i, res.Revision, last)
			} else {
				last = res.Revision
			}
		}
		if ans := r.held(t, "again"); strings.TrimSpace(string(ans.Entry.Value())) != "37" || ans.Entry.Revision != last {
			t.Errorf("the key ends as %q at %d", strings.TrimSpace(string(ans.Entry.Value())), ans.Entry.Revision)
		}
	})
}

// TestBulkStops: once the mesh takes no writes the rest is not tried. What is unknown stops nothing.
func TestBulkStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		name := func(i int) string { return fmt.Sprint("k", i) }
		r := newWriteRig(t)
		r.before = func(n int, _ []command.Op) error {
			time.Sleep(time.Second)
			if n > 2 {
				return kv.Errorf(kv.CodeNoLeader, "nobody leads")
			}
			return nil
		}
		o := newTold(t)
		if err := r.WriteEach(t.Context(), r.puts(t, o, 200, 60<<10, name)); err != nil {
			t.Fatal(err)
		}
		if len(o.res) != 200 || o.failed("") != 8 || o.failed(kv.CodeNoLeader) != 192 || len(r.sizes) > 2*bulkInFlight {
			t.Errorf("%d told, %d carried out, %d failed, %d proposals", len(o.res), o.failed(""), o.failed(kv.CodeNoLeader), len(r.sizes))
		}

		r = newWriteRig(t)
		r.before = func(n int, _ []command.Op) error {
			if n == 2 {
				return kv.Errorf(kv.CodeOutcomeUnknown, "the connection broke")
			}
			return nil
		}
		o = newTold(t)
		if err := r.WriteEach(t.Context(), r.puts(t, o, 40, 60<<10, name)); err != nil || o.failed("") != 36 || o.failed(kv.CodeOutcomeUnknown) != 4 {
			t.Errorf("%d carried out, %d unknown: %v", o.failed(""), o.failed(kv.CodeOutcomeUnknown), err)
		}

		r = newWriteRig(t)
		ctx, cancel := context.WithCancel(t.Context())
		r.before = func(n int, _ []command.Op) error { cancel(); return nil }
		o = newTold(t)
		if err := r.WriteEach(ctx, r.puts(t, o, 200, 60<<10, name)); err != nil || len(o.res) != 200 || o.failed("") == 200 || o.failed(kv.CodeDeadlineExceeded) == 0 {
			t.Errorf("after the client left: %d told, %d carried out: %v", len(o.res), o.failed(""), err)
		}
	})
}

// TestBulkGate: one call more than may run is refused, when its turn does not come, before it takes a write; all that was taken is given back.
func TestBulkGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newWriteRig(t)
		release := make(chan struct{})
		r.before = func(int, []command.Op) error { <-release; return nil }
		var calls sync.WaitGroup
		for i := range maxBulkCalls {
			calls.Go(func() {
				o := newTold(t)
				if err := r.WriteEach(t.Context(), r.puts(t, o, 1, 0, func(int) string { return fmt.Sprint("k", i) })); err != nil || o.failed("") != 1 {
					t.Errorf("call %d: %v %v", i, err, o.errs)
				}
			})
		}
		synctest.Wait()
		err := r.WriteEach(t.Context(), func(func(api.Write, func(api.WriteResult, error)) bool) { t.Error("a write was taken") })
		if e := asKVError(err); e == nil || e.Code != kv.CodeOverloaded || e.RetryAfter == 0 {
			t.Errorf("one call more: %v", err)
		}
		calls.Go(func() { // one that comes later, and waits for its turn
			if err := r.WriteEach(t.Context(), r.puts(t, newTold(t), 1, 0, func(int) string { return "late" })); err != nil {
				t.Errorf("one that waited: %v", err)
			}
		})
		synctest.Wait()
		close(release)
		calls.Wait()
		if !r.bulk.bytes.TryAcquire(maxBulkBytes) || len(r.bulk.calls) != 0 {
			t.Error("something is still held")
		}
	})
}

// TestTxnOutcomes: the results of a transaction are held, hinted and told by position.
func TestTxnOutcomes(t *testing.T) {
	r := newWriteRig(t)
	v := r.stageText(t, "a", "1")
	forgotten, err := r.Stage(t.Context(), api.StageRequest{Namespace: r.ns, Key: "b", Body: strings.NewReader("2"), Size: 1, Forget: true})
	if err != nil {
		t.Fatal(err)
	}
	r.store.apply(putIn(quiet, "old"))
	res, err := r.Txn(t.Context(), api.TxnRequest{
		Compare: []api.TxnCompare{{Namespace: r.ns, Key: "old", Cond: api.Cond{Kind: api.CondRevision, Revision: 2}}},
		Writes: []api.Write{
			{Namespace: r.ns, Key: "a", Value: v, Metadata: []byte("{}")},
			{Namespace: r.ns, Key: "b", Value: forgotten},
			{Namespace: r.ns, Key: "old"},
			{Namespace: r.ns, Key: "never"},
		},
	})
	if err != nil || res.Revision != 5 || res.AsOf != 5 || len(res.Writes) != 4 || len(res.Conflicts) != 0 {
		t.Fatalf("%+v %v", res, err)
	}
	for i, want := range []kv.Revision{3, 4, 5, 0} {
		if got := res.Writes[i]; got.Revision != want || got.AsOf != 5 {
			t.Errorf("write %d: %+v", i, got)
		}
	}
	if len(r.hints) != 1 || r.hints[0].Prev != 2 || r.hints[0].To != 5 || len(r.hints[0].Hashes) != 3 {
		t.Errorf("hints %+v", r.hints)
	}
	if ans := r.held(t, "a"); ans.Tier != cache.TierHit || string(ans.Entry.Value()) != "1" || string(ans.Entry.Metadata()) != "{}" {
		t.Errorf("a: %+v", ans)
	}
	if ans := r.held(t, "old"); ans.Tier != cache.TierHit || !ans.Entry.Absent() {
		t.Errorf("old: %+v", ans)
	}
	if ans := r.held(t, "b"); ans.Tier == cache.TierHit || ans.Entry.Revision != 4 {
		t.Errorf("what was forgotten is fetched: %+v", ans)
	}
	if _, err := r.Txn(t.Context(), api.TxnRequest{Writes: []api.Write{{Namespace: r.ns, Key: "other", Value: v}}}); kv.CodeOf(err) != kv.CodeInternal {
		t.Errorf("a value of another key: %v", err)
	}
	big := api.TxnRequest{}
	for i := range 5 {
		key := fmt.Sprint("big", i)
		big.Writes = append(big.Writes, api.Write{Namespace: r.ns, Key: key, Value: r.stageText(t, key, strings.Repeat("v", 60<<10))})
	}
	if _, err := r.Txn(t.Context(), big); kv.CodeOf(err) != kv.CodeTooLarge {
		t.Errorf("more than an entry holds: %v", err)
	}
}

// TestConditionsAreShown: what a condition has met, and a client is told, is not taken back by a later read here, although
// the feed has not told of it yet (I7). So it is for bulk writes and for the comparisons of transactions, also for those
// that hold.
func TestConditionsAreShown(t *testing.T) {
	for name, meet := range map[string]func(*testing.T, *writeRig){
		"a failed comparison": func(t *testing.T, r *writeRig) {
			res, err := r.Txn(t.Context(), api.TxnRequest{Compare: []api.TxnCompare{{Namespace: r.ns, Key: "k", Cond: api.Cond{Kind: api.CondRevision, Revision: 2}}}})
			if err != nil || len(res.Conflicts) != 1 || res.Conflicts[0].Revision != 3 {
				t.Errorf("%+v %v", res, err)
			}
		},
		"a comparison that holds": func(t *testing.T, r *writeRig) {
			res, err := r.Txn(t.Context(), api.TxnRequest{Compare: []api.TxnCompare{{Namespace: r.ns, Key: "k", Cond: api.Cond{Kind: api.CondRevision, Revision: 3}}}})
			if err != nil || len(res.Conflicts) != 0 {
				t.Errorf("%+v %v", res, err)
			}
		},
		"a bulk write": func(t *testing.T, r *writeRig) {
			o := newTold(t)
			err := r.WriteEach(t.Context(), func(yield func(api.Write, func(api.WriteResult, error)) bool) {
				yield(api.Write{Namespace: r.ns, Key: "k", Cond: api.Cond{Kind: api.CondAbsent}}, o.of("k"))
			})
			if e := asKVError(o.errs["k"]); err != nil || e == nil || e.Code != kv.CodeConditionFailed || e.Revision != 3 {
				t.Errorf("%v %v", err, o.errs)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newWriteRig(t)
			r.store.apply(putIn(quiet, "k"))
			if ans := r.held(t, "k"); ans.Entry.Revision != 2 {
				t.Fatalf("%+v", ans)
			}
			r.store.apply(putIn(quiet, "k")) // elsewhere, and nothing has told of it
			if ans := r.held(t, "k"); ans.Entry.Revision != 2 || ans.Tier != cache.TierHit {
				t.Fatalf("the cache knows already: %+v", ans)
			}
			meet(t, r)
			if ans := r.held(t, "k"); ans.Entry.Revision != 3 {
				t.Errorf("revision 3 was told, and then revision %d is served", ans.Entry.Revision)
			}
		})
	}
}
