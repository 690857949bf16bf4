package state

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// model says what the state machine must do, in the plainest way: maps, and everything searched by walking.
type model struct {
	rev     kv.Revision
	mesh    int64
	epoch   kv.Epoch
	epochs  map[kv.Revision]kv.Epoch  // where each but the first one begins
	titles  map[kv.NamespaceID]string // live namespaces
	used    map[kv.NamespaceID]bool   // every id ever
	keys    map[slotKey]command.Op    // the put that made the key, with its revision
	stale   map[slotKey]int64         // expiries that deleted namespaces left in the index
	freed   map[kv.BlobID]bool
	changes []modelChange // changes[i] is that of revision i+1
}

// changeEpoch is the model's kind for a revision that began an epoch. The change index holds none.
const changeEpoch changeKind = 0

type modelChange struct {
	kind changeKind
	ns   kv.NamespaceID
	key  string
}

func newModel() *model {
	return &model{
		epoch: testEpoch, epochs: map[kv.Revision]kv.Epoch{}, titles: map[kv.NamespaceID]string{}, used: map[kv.NamespaceID]bool{}, keys: map[slotKey]command.Op{},
		stale: map[slotKey]int64{}, freed: map[kv.BlobID]bool{},
	}
}

func (m *model) take(kind changeKind, ns kv.NamespaceID, key string) kv.Revision {
	m.rev++
	m.changes = append(m.changes, modelChange{kind, ns, key})
	return m.rev
}

func (m *model) gone(op command.Op) bool { return op.Expiry != 0 && op.Expiry*1000 <= m.mesh }

func (m *model) forget(k slotKey) {
	if old := m.keys[k]; !old.Blob.IsZero() {
		m.freed[old.Blob] = true
	}
	delete(m.keys, k)
}

// deed is an operation, or a member of a transaction, with the revision up to which its result speaks.
type deed struct {
	op   command.Op
	res  *command.OpResult
	upTo kv.Revision
}

// apply is one batch. AsOf is worked out from the changes that each operation made.
func (m *model) apply(b command.Batch) []command.OpResult {
	m.mesh = max(m.mesh, b.MeshTime)
	res := make([]command.OpResult, len(b.Ops))
	var deeds []deed
	for i, op := range b.Ops {
		if op.Kind == command.KindTxn {
			deeds = append(deeds, m.transaction(op, &res[i])...)
		} else {
			m.op(op, &res[i])
		}
		deeds = append(deeds, deed{op, &res[i], m.rev})
	}
	for _, d := range deeds {
		d.res.AsOf = m.rev
		for _, c := range m.changes[d.upTo:m.rev] {
			if c.ns == d.op.Namespace && (c.kind > changeDelete || c.key == d.op.Key) && d.op.Namespace != (kv.NamespaceID{}) {
				d.res.AsOf = d.upTo
			}
		}
	}
	return res
}

func (m *model) holds(c command.Cond, old command.Op, there bool) bool {
	switch c.Kind {
	case command.CondAbsent:
		return !there
	case command.CondPresent:
		return there
	case command.CondRevision:
		return there && old.Revision == c.Revision && c.EpochTag == [4]byte(m.epoch[12:])
	}
	return true
}

func (m *model) op(op command.Op, r *command.OpResult) {
	_, live := m.titles[op.Namespace]
	owner := func(t string) (id kv.NamespaceID) {
		for ns, have := range m.titles {
			if have == t {
				return ns
			}
		}
		return id
	}
	switch op.Kind {
	case command.KindInit:
		m.titles[op.Namespace], m.used[op.Namespace] = op.Title, true
		r.Revision = m.take(changeInit, op.Namespace, "")
	case command.KindCreateNamespace:
		if m.used[op.Namespace] || !owner(op.Title).IsZero() {
			r.Code = kv.CodeNamespaceExists
			return
		}
		m.titles[op.Namespace], m.used[op.Namespace] = op.Title, true
		r.Revision = m.take(changeCreateNamespace, op.Namespace, "")
	case command.KindRenameNamespace:
		if !live {
			r.Code = kv.CodeNamespaceNotFound
		} else if o := owner(op.Title); !o.IsZero() && o != op.Namespace {
			r.Code = kv.CodeNamespaceExists
		} else {
			m.titles[op.Namespace] = op.Title
			r.Revision = m.take(changeRenameNamespace, op.Namespace, "")
		}
	case command.KindDeleteNamespace:
		if !live {
			r.Code = kv.CodeNamespaceNotFound
			return
		}
		delete(m.titles, op.Namespace)
		for k, old := range m.keys {
			if k.ns == op.Namespace {
				if old.Expiry != 0 {
					m.stale[k] = old.Expiry
				}
				m.forget(k)
			}
		}
		r.Revision = m.take(changeDeleteNamespace, op.Namespace, "")
	case command.KindPut, command.KindDelete:
		m.write(op, live, r)
	case command.KindSweep:
		m.sweep(int(op.Limit), op.Expiry, r)
	case command.KindNewEpoch:
		if op.Epoch.Compare(m.epoch) <= 0 {
			r.Code = kv.CodeInternal
			return
		}
		r.Revision = m.take(changeEpoch, kv.NamespaceID{}, "")
		m.epoch, m.epochs[m.rev] = op.Epoch, op.Epoch
	}
}

func (m *model) write(op command.Op, live bool, r *command.OpResult) {
	if !live {
		r.Code = kv.CodeNamespaceNotFound
		return
	}
	k := slotKey{op.Namespace, op.Key}
	old, there := m.keys[k]
	there = there && !m.gone(old)
	if !m.holds(op.Cond, old, there) {
		r.Code = kv.CodeConditionFailed
		if there {
			r.Current = old.Revision
		}
		return
	}
	if op.Kind == command.KindDelete {
		if there {
			m.forget(k)
			r.Revision = m.take(changeDelete, op.Namespace, op.Key)
		}
		return
	}
	m.forget(k)
	r.Revision = m.take(changePut, op.Namespace, op.Key)
	op.Revision = r.Revision
	m.keys[k] = op
	delete(m.freed, op.Blob)
}

func (m *model) sweep(limit int, since int64, r *command.OpResult) {
	type due struct {
		slotKey
		expiry int64
	}
	var all []due
	for k, op := range m.keys {
		if m.gone(op) && op.Expiry >= since {
			all = append(all, due{k, op.Expiry})
		}
	}
	for k, expiry := range m.stale {
		if expiry*1000 <= m.mesh && expiry >= since {
			all = append(all, due{k, expiry})
		}
	}
	slices.SortFunc(all, func(a, b due) int {
		return cmp.Or(cmp.Compare(a.expiry, b.expiry), bytes.Compare(a.ns[:], b.ns[:]), strings.Compare(a.key, b.key))
	})
	for _, d := range all[:min(limit, len(all))] {
		if _, ok := m.stale[d.slotKey]; ok {
			delete(m.stale, d.slotKey)
			continue
		}
		m.forget(d.slotKey)
		r.Revision = m.take(changeDelete, d.ns, d.key)
	}
}

// randomLog makes n entries that collide a lot: few keys, few namespaces, short lives, conditions that often hold.
func randomLog(rng *rand.Rand, n int) []Entry {
	keys := []string{"a", "a/b", "a//b", "b", "ü", "\x00", "z\xff\xff", strings.Repeat("k", 512)}
	blob := uint64(1000)
	log := []Entry{{Index: 3, Term: 1, Batch: command.Batch{MeshTime: 10_000, Ops: []command.Op{initOp()}}}}
	mesh, index, rev := int64(10_000), uint64(3), uint64(1)
	epoch := uint64(200) // testEpoch's
	for i := range n {
		index += 1 + uint64(rng.IntN(5)/4)
		mesh += rng.Int64N(900) - 100
		e := Entry{Index: index, Term: 1 + index/50, Batch: command.Batch{MeshTime: mesh}}
		for range 1 + rng.IntN(6) {
			rev++
			if rng.IntN(6) == 0 { // a transaction of what the entry has so far, beside it
				txn := command.Op{Kind: command.KindTxn}
				for _, op := range e.Batch.Ops {
					switch op.Kind {
					case command.KindPut, command.KindDelete:
						if rng.IntN(3) > 0 {
							op.Cond = command.Cond{}
						}
						if !op.Blob.IsZero() && rng.IntN(5) > 0 { // else that of an operation before it, or of a member
							blob++
							op.Blob = kv.BlobID(id16(blob))
						}
						txn.Members = append(txn.Members, op)
						if rng.IntN(4) == 0 {
							check := command.Op{Kind: command.KindCheck, Namespace: op.Namespace, Key: keys[rng.IntN(len(keys))], Cond: op.Cond}
							txn.Members = slices.Insert(txn.Members, rng.IntN(len(txn.Members)+1), check)
						}
						rev++
					}
				}
				if len(txn.Members) > 0 {
					e.Batch.Ops = append(e.Batch.Ops, txn)
				}
				continue
			}
			ns := kv.NamespaceID(id16(1 + uint64(i/60) + rng.Uint64N(3))) // deleted ids stay deleted, so move on
			op := command.Op{Namespace: ns, Key: keys[rng.IntN(len(keys))], Title: fmt.Sprint("t", rng.IntN(20))}
			switch x := rng.IntN(100); {
			case x < 55:
				op = in(ns, put(op.Key, strings.Repeat("v", rng.IntN(4)*600)))
				op.Metadata = []byte(fmt.Sprint("m", x))[:rng.IntN(2)*2]
				if x < 10 {
					blob++
					op = in(ns, putBlob(op.Key, blob))
				}
				if rng.IntN(2) == 0 {
					op.Expiry = mesh/1000 + rng.Int64N(5)
				}
			case x < 75:
				op = in(ns, del(op.Key))
			case x < 84:
				op = command.Op{Kind: command.KindSweep, Limit: rng.Uint32N(5)}
				if rng.IntN(4) == 0 {
					op.Expiry = max(0, mesh/1000-rng.Int64N(4))
				}
			case x < 94:
				op.Kind, op.Key, op.WrappedKey = command.KindCreateNamespace, "", []byte("w")
			case x < 96:
				op.Kind, op.Key = command.KindRenameNamespace, ""
			case x < 97:
				op = drop(ns)
			case x < 98:
				epoch += min(rng.Uint64N(4), 1) // else one that the mesh is in already
				op = newEpoch(epoch)
			default:
				op = command.Op{Kind: command.KindTrim, Revision: kv.Revision(rng.Uint64N(rev))}
			}
			if (op.Kind == command.KindPut || op.Kind == command.KindDelete) && rng.IntN(3) == 0 {
				now := newEpoch(epoch).Epoch
				op.Cond = command.Cond{Kind: command.CondKind(rng.IntN(4)), EpochTag: [4]byte(now[12:])}
				op.Cond.Revision = kv.Revision(rev - min(rev, rng.Uint64N(12)))
				if op.Cond.Kind != command.CondRevision {
					op.Cond.EpochTag, op.Cond.Revision = [4]byte{}, 0
				}
			}
			e.Batch.Ops = append(e.Batch.Ops, op)
		}
		log = append(log, e)
	}
	return log
}

// replay applies log in groups of the sizes that size gives, and returns results and records in the order of the log.
func replay(t *testing.T, f *fixture, log []Entry, size func() int) (results []command.Result, records []kv.Record) {
	t.Helper()
	f.Observe(func(c Committed) { records = append(records, c.Records...) })
	for len(log) > 0 {
		n := min(size(), len(log))
		rs, err := f.Apply(log[:n])
		if err != nil {
			t.Fatal(err)
		}
		results, log = append(results, rs...), log[n:]
	}
	return results, records
}

// TestModel: random logs do what the model says, and the same log in different groupings gives the same results, the same
// records and the same bytes on disk.
func TestModel(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		log := randomLog(rng, 400)
		one := openOn(t, vfs.NewMem())
		results, records := replay(t, one, log, func() int { return 1 })

		m := newModel()
		conds, whole, refused := 0, 0, 0
		for i, e := range log {
			want := m.apply(e.Batch)
			got := results[i]
			if !reflect.DeepEqual(got.Ops, want) || got.Revision != m.rev || got.MeshTime != m.mesh || got.Epoch != m.epoch {
				t.Fatalf("seed %d, entry %d\nops  %+v\ngot  %+v\nwant %+v, epoch %s, revision %d", seed, i, e.Batch.Ops, got, want, m.epoch, m.rev)
			}
			for _, r := range want {
				switch {
				case len(r.Members) > 1 && r.Revision != 0:
					whole++
				case len(r.Members) > 1 && r.Code != "":
					refused++
				case r.Code == kv.CodeConditionFailed && r.Current != 0:
					conds++
				}
			}
		}
		if whole < 5 || refused < 5 {
			t.Fatalf("seed %d: %d transactions were carried out, %d refused", seed, whole, refused)
		}
		if conds < 5 || len(m.freed) < 5 || m.rev < 250 || len(m.epochs) < 2 {
			t.Fatalf("seed %d: a dull log of %d entries: %d conditions failed, %d blobs freed, revision %d, %d epochs", seed, len(log), conds, len(m.freed), m.rev, len(m.epochs))
		}
		compare(t, one, m)
		checkRecords(t, m, records)

		want := dump(t, one.State)
		for name, size := range map[string]func() int{
			"all at once": func() int { return len(log) },
			"random":      func() int { return 1 + rng.IntN(30) },
		} {
			other := openOn(t, vfs.NewMem())
			rs, recs := replay(t, other, log, size)
			if !reflect.DeepEqual(rs, results) || !reflect.DeepEqual(recs, records) {
				t.Errorf("seed %d, %s: other results or records", seed, name)
			}
			if got := dump(t, other.State); got != want {
				t.Errorf("seed %d, %s: other content\n%s", seed, name, firstDifference(got, want))
			}
		}
	}
}

// compare reads everything back.
func compare(t *testing.T, f *fixture, m *model) {
	t.Helper()
	if got := f.Applied(); got.Revision != m.rev || got.MeshTime != m.mesh || got.Epoch != m.epoch {
		t.Errorf("applied %+v", got)
	}
	compareFloors(t, f, m)
	compareExpiry(t, f, m)
	stats := map[kv.NamespaceID]NamespaceStats{}
	blobs := map[kv.BlobID]bool{}
	for k, op := range m.keys {
		got := f.get(k.ns, k.key)
		want := kv.Item{Revision: op.Revision, Expiry: op.Expiry, Size: op.Size, WriteID: op.WriteID, Metadata: op.Metadata, Value: op.Value, Blob: op.Blob}
		if len(want.Metadata) == 0 {
			want.Metadata = nil
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s %q\ngot  %+v\nwant %+v", k.ns, k.key, got, want)
		}
		st := stats[k.ns]
		stats[k.ns] = NamespaceStats{Keys: st.Keys + 1, Bytes: st.Bytes + int64(len(k.key)) + op.Size}
		if !op.Blob.IsZero() {
			blobs[op.Blob] = true
		}
	}
	if c := f.Control(); len(c.Namespaces) != len(m.titles) {
		t.Errorf("%d namespaces, want %d", len(c.Namespaces), len(m.titles))
	}
	for _, n := range f.Control().Namespaces {
		st, err := f.NamespaceStats(n.ID)
		want := stats[n.ID]
		for i, c := range m.changes {
			if c.ns == n.ID {
				want.LastModified = kv.Revision(i + 1)
			}
		}
		if err != nil || st != want || m.titles[n.ID] != n.Title {
			t.Errorf("namespace %s %q: %+v, want %+v %q (%v)", n.ID, n.Title, st, want, m.titles[n.ID], err)
		}
	}
	err := f.EachBlob(func(_ kv.NamespaceID, id kv.BlobID, _ int64) error {
		if !blobs[id] {
			t.Errorf("blob %s is named by nothing", id)
		}
		delete(blobs, id)
		return nil
	})
	freed, rerr := released(f.State, 1<<20)
	if err != nil || rerr != nil || len(blobs) != 0 || len(freed) != len(m.freed) {
		t.Errorf("%d blobs missing, %d released, want %d (%v, %v)", len(blobs), len(freed), len(m.freed), err, rerr)
	}
}

// compareExpiry: a sweep is due exactly when NextExpiry says so.
func compareExpiry(t *testing.T, f *fixture, m *model) {
	t.Helper()
	want := int64(0)
	note := func(expiry int64) {
		if expiry != 0 && (want == 0 || expiry < want) {
			want = expiry
		}
	}
	for _, op := range m.keys {
		note(op.Expiry)
	}
	for _, expiry := range m.stale {
		note(expiry)
	}
	if got, ok, err := f.NextExpiry(); got != want || ok != (want != 0) || err != nil {
		t.Errorf("the next key expires at %d (%t, %v), want %d", got, ok, err, want)
	}
}

// compareFloors: whatever the change was, FloorsAfter knows the last one of each namespace, the deleted ones included.
func compareFloors(t *testing.T, f *fixture, m *model) {
	t.Helper()
	for after := kv.Revision(0); after <= m.rev; after += 7 {
		want := map[kv.NamespaceID]kv.Revision{}
		for i, c := range m.changes[after:] {
			if c.kind != changeEpoch {
				want[c.ns] = after + kv.Revision(i) + 1
			}
		}
		floors, at, ok, err := f.FloorsAfter(after, len(want))
		got := map[kv.NamespaceID]kv.Revision{}
		for _, fl := range floors {
			got[fl.Namespace] = fl.Revision
		}
		if !ok || err != nil || at != f.Applied() || len(floors) != len(got) || !reflect.DeepEqual(got, want) {
			t.Fatalf("after %d of %d: %v at %+v, %v, %v; want %v", after, m.rev, floors, at, ok, err, want)
		}
		if len(want) == 0 {
			continue
		}
		if floors, at, ok, err := f.FloorsAfter(after, len(want)-1); floors != nil || at != f.Applied() || ok || err != nil {
			t.Fatalf("after %d, one too many: %v at %+v, %v, %v", after, floors, at, ok, err)
		}
	}
}

// checkRecords: the records are dense from the first revision, and say what the model did.
func checkRecords(t *testing.T, m *model, records []kv.Record) {
	t.Helper()
	epoch, hasher := testEpoch, feed.NewHasher(testEpoch)
	var at kv.Revision
	for _, r := range records {
		if next, ok := m.epochs[at+1]; ok {
			if want := (kv.Record{Epoch: next, To: at + 1, Kind: kv.RecordAll}); !reflect.DeepEqual(r, want) {
				t.Fatalf("record %+v, want %+v", r, want)
			}
			epoch, hasher, at = next, feed.NewHasher(next), r.To
			continue
		}
		if r.Prev != at || r.To <= at || r.Epoch != epoch {
			t.Fatalf("record (%d, %d] of %s after %d of %s", r.Prev, r.To, r.Epoch, at, epoch)
		}
		for i, c := range m.changes[r.Prev:r.To] {
			ok := r.Kind == kv.RecordKeys && len(r.Hashes) == 0 && r.To == r.Prev+1
			switch c.kind {
			case changePut, changeDelete:
				ok = r.Kind == kv.RecordKeys && len(r.Hashes) == int(r.To-r.Prev) && r.Hashes[i] == hasher.Key(c.ns, c.key)
			case changeDeleteNamespace:
				ok = r.Kind == kv.RecordNamespace && r.Namespace == c.ns && r.To == r.Prev+1
			case changeEpoch:
				ok = false // it lies in the middle of one
			}
			if !ok {
				t.Fatalf("record %+v covers %+v", r, c)
			}
		}
		at = r.To
	}
	if at != m.rev {
		t.Errorf("the records end at %d, want %d", at, m.rev)
	}
}

func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return fmt.Sprintf("%.300s\n%.300s", as[i], bs[i])
		}
	}
	return fmt.Sprintf("%d and %d lines", len(as), len(bs))
}
