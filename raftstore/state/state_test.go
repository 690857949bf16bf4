package state

import (
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

func TestInit(t *testing.T) {
	f := openOn(t, vfs.NewMem())
	if r := f.at(1, put("a", "1"), create(ns2, "two")); r.Ops[0].Code != kv.CodeInternal || r.Ops[1].Code != kv.CodeInternal || r.Revision != 0 {
		t.Errorf("operations before init: %+v", r)
	}
	r := f.at(2, initOp(), initOp())
	if r.Ops[0].Revision != 1 || r.Ops[1].Code != kv.CodeInternal || r.Revision != 1 || r.Epoch != testEpoch {
		t.Errorf("init: %+v", r)
	}
	want := kv.Control{
		Cluster: testCluster, Epoch: testEpoch, Revision: 1,
		Namespaces: []kv.Namespace{{ID: ns1, Title: "default", WrappedKey: []byte("w1"), Created: 1}},
	}
	if got := f.Control(); !reflect.DeepEqual(got, want) {
		t.Errorf("control %+v", got)
	}
	if a := f.Applied(); a != (Applied{Index: 2, Term: 1, Revision: 1, MeshTime: 2000, Epoch: testEpoch, Cluster: testCluster}) {
		t.Errorf("applied %+v", a)
	}
}

func TestPutGetDelete(t *testing.T) {
	f := newState(t)
	op := putUntil("k", "value", 5000)
	op.Metadata = []byte("meta")
	big := put("big", strings.Repeat("v", inlineBytes+1))
	f.at(1, op, big, put("empty", ""), putBlob("blob", 9))
	want := kv.Item{Revision: 2, Expiry: 5000, Size: 5, WriteID: kv.WriteID(id16(7)), Metadata: []byte("meta"), Value: []byte("value")}
	if got := f.get(ns1, "k"); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if got := f.get(ns1, "big"); string(got.Value) != string(big.Value) {
		t.Errorf("separate value of %d bytes", len(got.Value))
	}
	if got := f.get(ns1, "empty"); got.Value == nil || len(got.Value) != 0 {
		t.Errorf("empty value %v", got.Value)
	}
	if got := f.get(ns1, "blob"); got.Value != nil || got.Blob != kv.BlobID(id16(9)) {
		t.Errorf("blob %+v", got)
	}
	if got, _, err := f.Get(ns1, "big", true); err != nil || got.Value != nil || got.Size != int64(len(big.Value)) {
		t.Errorf("head only: %+v, %v", got, err)
	}
	if got := f.get(ns1, "none"); !reflect.DeepEqual(got, kv.Item{Absent: true}) {
		t.Errorf("absent: %+v", got)
	}
	_, a, err := f.Get(ns2, "k", false)
	if kv.CodeOf(err) != kv.CodeNamespaceNotFound || a != f.Applied() {
		t.Errorf("unknown namespace: %v at %+v", err, a)
	}

	r := f.at(2, del("none"), del("big"), del("big"))
	if got := [3]kv.Revision{r.Ops[0].Revision, r.Ops[1].Revision, r.Ops[2].Revision}; got != [3]kv.Revision{0, 6, 0} {
		t.Errorf("a delete of a missing key takes no revision: %v", got)
	}
	f.at(3, put("big", "small now"))
	if got := f.get(ns1, "big"); string(got.Value) != "small now" || strings.Contains(dump(t, f.State), `"v/`) {
		t.Errorf("the old separate value is still there")
	}
	if st, err := f.NamespaceStats(ns1); err != nil || st != (NamespaceStats{Keys: 4, Bytes: 1 + 5 + 5 + 0 + 4 + 1<<20 + 3 + 9, LastModified: 7}) {
		t.Errorf("stats %+v, %v", st, err)
	}
}

func TestConditions(t *testing.T) {
	tag := [4]byte(testEpoch[12:])
	f := newState(t)
	f.at(10, put("k", "1"), putUntil("old", "1", 10)) // revisions 2 and 3; "old" has expired already
	cases := []struct {
		name    string
		op      command.Op
		code    kv.Code
		current kv.Revision
	}{
		{"absent, is there", when(put("k", "2"), command.Cond{Kind: command.CondAbsent}), kv.CodeConditionFailed, 2},
		{"absent, is not", when(put("new", "2"), command.Cond{Kind: command.CondAbsent}), "", 0},
		{"absent, seen by the next operation", when(put("new", "3"), command.Cond{Kind: command.CondAbsent}), kv.CodeConditionFailed, 4},
		{"absent, expired", when(put("old", "2"), command.Cond{Kind: command.CondAbsent}), "", 0},
		{"present, is not", when(del("none"), command.Cond{Kind: command.CondPresent}), kv.CodeConditionFailed, 0},
		{"present, is there", when(put("k", "2"), command.Cond{Kind: command.CondPresent}), "", 0},
		{"revision of before", when(put("k", "3"), command.Cond{Kind: command.CondRevision, EpochTag: tag, Revision: 2}), kv.CodeConditionFailed, 6},
		{"revision of another epoch", when(put("k", "3"), command.Cond{Kind: command.CondRevision, EpochTag: [4]byte{1}, Revision: 6}), kv.CodeConditionFailed, 6},
		{"revision", when(del("k"), command.Cond{Kind: command.CondRevision, EpochTag: tag, Revision: 6}), "", 0},
		{"revision, is gone", when(del("k"), command.Cond{Kind: command.CondRevision, EpochTag: tag, Revision: 6}), kv.CodeConditionFailed, 0},
	}
	var ops []command.Op
	for _, c := range cases {
		ops = append(ops, c.op)
	}
	r := f.at(10, ops...)
	for i, c := range cases {
		if got := r.Ops[i]; got.Code != c.code || got.Current != c.current || (got.Revision == 0) != (c.code != "") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// TestAsOf: the outcome holds up to the end of the batch unless a later operation touched the key.
func TestAsOf(t *testing.T) {
	f := newState(t)
	f.at(0, create(ns2, "two"))
	r := f.at(5,
		put("a", "1"),          // 3, touched by the second put
		del("b"),               // nothing, touched by the put of b
		putUntil("x", "1", 5),  // 4, swept
		put("a", "2"),          // 5
		put("b", "1"),          // 6
		in(ns2, put("a", "1")), // 7, its namespace is dropped
		when(put("a", "3"), command.Cond{Kind: command.CondAbsent}), // fails, nothing touches a after it
		command.Op{Kind: command.KindSweep, Limit: 10},              // 8
		drop(ns2), // 9
		in(ns2, put("a", "1")),
	)
	want := []kv.Revision{3, 3, 4, 9, 9, 7, 9, 9, 9, 9}
	for i, w := range want {
		if r.Ops[i].AsOf != w {
			t.Errorf("operation %d: AsOf %d, want %d (%+v)", i, r.Ops[i].AsOf, w, r.Ops[i])
		}
	}
}

// TestMeshTime: it never goes back, and expiry is judged by it exactly at the second.
func TestMeshTime(t *testing.T) {
	f := newState(t)
	f.at(1000, putUntil("k", "1", 2000))
	if r := f.at(500); r.MeshTime != 1000_000 {
		t.Errorf("mesh time went back to %d", r.MeshTime)
	}
	apply := func(ms int64, op command.Op) command.OpResult {
		rs, err := f.Apply([]Entry{{Index: f.next, Term: 1, Batch: command.Batch{MeshTime: ms, Ops: []command.Op{op}}}})
		if err != nil {
			t.Fatal(err)
		}
		f.next++
		return rs[0].Ops[0]
	}
	absent := when(put("k", "2"), command.Cond{Kind: command.CondAbsent})
	if r := apply(1999_999, absent); r.Code != kv.CodeConditionFailed {
		t.Errorf("a millisecond before its expiry the key is gone: %+v", r)
	}
	if r := apply(1999_999, command.Op{Kind: command.KindSweep, Limit: 9}); r.Revision != 0 {
		t.Errorf("swept too early: %+v", r)
	}
	if r := apply(2000_000, del("k")); !reflect.DeepEqual(r, command.OpResult{AsOf: 2}) {
		t.Errorf("a delete of an expired key changes nothing: %+v", r)
	}
	if f.get(ns1, "k").Absent {
		t.Error("the expired key is returned until it is swept; the caller judges")
	}
	if r := apply(0, absent); r.Code != "" {
		t.Errorf("at its expiry the key is still there: %+v", r)
	}
}

func TestSweep(t *testing.T) {
	f := newState(t)
	f.at(0, create(ns2, "two"))
	f.at(1, putUntil("c", "1", 30), putUntil("a", "1", 20), putUntil("b", "1", 10), putUntil("later", "1", 99), put("ever", "1"))
	f.at(1, in(ns2, putUntil("gone", "1", 15)), drop(ns2))
	f.at(2, putUntil("b", "2", 25), put("never", "1")) // b moves between a and c
	sweep := command.Op{Kind: command.KindSweep, Limit: 2}
	from := f.Applied().Revision
	if r := f.at(30, sweep); r.Ops[0].Revision != from+1 { // the stale entry of the dropped namespace, then a
		t.Errorf("first sweep: %+v", r)
	}
	if r := f.at(30, putUntil("d", "1", 30), sweep); r.Ops[1].Revision != from+4 { // b, c; d was put in the same batch
		t.Errorf("second sweep: %+v", r)
	}
	f.at(30, sweep)
	kinds, keys := changesAfter(t, f, from)
	if strings.Join(keys, " ") != "a d b c d" || kinds[1] != changePut {
		t.Errorf("changes %v %v", kinds, keys)
	}
	if st, _ := f.NamespaceStats(ns1); st.Keys != 3 {
		t.Errorf("%d keys left, want later, ever and never", st.Keys)
	}
	if n := strings.Count(dump(t, f.State), `"x/`); n != 1 {
		t.Errorf("%d entries in the expiry index, want that of later", n)
	}
}

// changesAfter reads the change index itself.
func changesAfter(t *testing.T, f *fixture, after kv.Revision) (kinds []changeKind, keys []string) {
	t.Helper()
	v, err := f.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer v.release()
	err = scan(v.snap, changeKey(nil, after+1), changeKey(nil, math.MaxUint64), func(_, val []byte) (bool, error) {
		kind, _, key, err := decodeChange(val)
		kinds, keys = append(kinds, kind), append(keys, key)
		return true, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return kinds, keys
}

func TestNamespaces(t *testing.T) {
	f := newState(t)
	rename := func(ns kv.NamespaceID, title string) command.Op {
		return command.Op{Kind: command.KindRenameNamespace, Namespace: ns, Title: title}
	}
	ns3 := kv.NamespaceID(id16(3))
	cases := []struct {
		name string
		op   command.Op
		code kv.Code
	}{
		{"create", create(ns2, "two"), ""},
		{"its id again", create(ns2, "three"), kv.CodeNamespaceExists},
		{"its title again", create(ns3, "two"), kv.CodeNamespaceExists},
		{"a title that looks like an id", create(ns3, ns1.String()), kv.CodeNamespaceExists},
		{"zero id", create(kv.NamespaceID{}, "zero"), kv.CodeInternal},
		{"rename to a title that looks like an id", rename(ns2, ns3.String()), kv.CodeNamespaceExists},
		{"rename to the title of another", rename(ns2, "default"), kv.CodeNamespaceExists},
		{"rename an unknown one", rename(ns3, "x"), kv.CodeNamespaceNotFound},
		{"rename default", rename(ns1, "zwei"), ""},
		{"take its old title", rename(ns2, "default"), ""},
		{"rename to its own title", rename(ns2, "default"), ""},
		{"put", in(ns2, put("k", "1")), ""},
		{"delete", drop(ns2), ""},
		{"delete again", drop(ns2), kv.CodeNamespaceNotFound},
		{"put into it", in(ns2, put("k", "1")), kv.CodeNamespaceNotFound},
		{"its id in the same call", create(ns2, "again"), kv.CodeNamespaceExists},
		{"its title", create(ns3, "default"), ""},
	}
	var ops []command.Op
	for _, c := range cases {
		ops = append(ops, c.op)
	}
	r := f.at(1, ops...)
	for i, c := range cases {
		if r.Ops[i].Code != c.code {
			t.Errorf("%s: %q", c.name, r.Ops[i].Code)
		}
	}
	if r := f.at(2, create(ns2, "again")); r.Ops[0].Code != kv.CodeNamespaceExists {
		t.Errorf("the id of a deleted namespace was used again: %+v", r)
	}
	want := []kv.Namespace{
		{ID: ns3, Title: "default", WrappedKey: []byte("key of default"), Created: 8},
		{ID: ns1, Title: "zwei", WrappedKey: []byte("w1"), Created: 1},
	}
	if c := f.Control(); !reflect.DeepEqual(c.Namespaces, want) || c.Revision != 8 {
		t.Errorf("control %+v", c)
	}
	if d := dump(t, f.State); strings.Contains(d, `"t/k/\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"`) {
		t.Error("the data key of the deleted namespace is still there")
	}
}

// TestDeleteNamespaceLeavesOthers: the range deletions end at the namespace's own keys.
func TestDeleteNamespaceLeavesOthers(t *testing.T) {
	f := newState(t)
	f.at(0, create(ns2, "two"), create(kv.NamespaceID(id16(3)), "three"))
	big := put("k", strings.Repeat("v", 5000))
	for _, ns := range []kv.NamespaceID{ns1, ns2, kv.NamespaceID(id16(3))} {
		f.at(1, in(ns, big), in(ns, put("s", "1")))
	}
	f.at(2, in(ns2, put("late", "1")), drop(ns2), in(ns1, put("after", "1")))
	for _, ns := range []kv.NamespaceID{ns1, kv.NamespaceID(id16(3))} {
		if got := f.get(ns, "k"); len(got.Value) != 5000 {
			t.Errorf("the neighbour %s lost its value", ns)
		}
	}
	d := dump(t, f.State)
	for _, space := range []string{"k/", "v/"} {
		if strings.Contains(d, `"`+space+`\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02`) {
			t.Errorf("something of the deleted namespace is left in %s", space)
		}
	}
	if f.get(ns1, "after").Absent {
		t.Error("what followed in the batch was lost")
	}
}

func TestUnknownCommandAppliesNothing(t *testing.T) {
	for _, op := range []command.Op{{Kind: 99}, when(put("k", "1"), command.Cond{Kind: 9})} {
		f := newState(t)
		before := dump(t, f.State)
		_, err := f.Apply([]Entry{
			{Index: 10, Batch: command.Batch{Ops: []command.Op{put("a", "1")}}},
			{Index: 11, Batch: command.Batch{Ops: []command.Op{op}}},
		})
		if !errors.Is(err, command.ErrUnknown) || dump(t, f.State) != before {
			t.Errorf("%v; the state must be as it was", err)
		}
		if _, err := f.Apply([]Entry{{Index: 12}}); !errors.Is(err, command.ErrUnknown) {
			t.Errorf("apply after a fatal error: %v", err)
		}
	}
}

func TestReplayIsSkipped(t *testing.T) {
	f := newState(t)
	e := Entry{Index: 5, Term: 2, Batch: command.Batch{MeshTime: 9000, Ops: []command.Op{put("a", "1")}}}
	if _, err := f.Apply([]Entry{e}); err != nil {
		t.Fatal(err)
	}
	told := 0
	before := dump(t, f.State)
	f.Observe(func(Committed) { told++ })
	rs, err := f.Apply([]Entry{{Index: 4, Batch: e.Batch}, e, e})
	if err != nil || !reflect.DeepEqual(rs, make([]command.Result, 3)) || dump(t, f.State) != before || told != 0 {
		t.Errorf("a replay changed something: %+v, %v", rs, err)
	}
	rs, err = f.Apply([]Entry{e, {Index: 6, Term: 3, Batch: command.Batch{Ops: []command.Op{put("b", "1")}}}})
	if err != nil || rs[0].Ops != nil || rs[1].Revision != 3 || told != 1 {
		t.Errorf("%+v, %v", rs, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	fs := vfs.NewMem()
	f := openOn(t, fs)
	if _, err := Open("state", Options{FS: fs}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("open twice: %v", err)
	}
	f.at(1, initOp())
	// Close flushes.
	if err := f.w.gen.db.Set([]byte(keySchema), appendNumber(nil, 77), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("state", Options{FS: fs}); err == nil || !strings.Contains(err.Error(), "schema version 77 and this build knows 1") {
		t.Errorf("unknown schema: %v", err)
	}
	if err := fs.RemoveAll("state/" + firstGeneration); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("state", Options{FS: fs}); err == nil {
		t.Error("the marker names a directory that is gone, and an empty state was opened instead")
	}
}

func TestClosed(t *testing.T) {
	f := newState(t)
	a := f.Applied()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	_, _, gerr := f.Get(ns1, "k", false)
	_, aerr := f.Apply(nil)
	for _, err := range []error{gerr, aerr, f.Close(), f.Witness(9, 9), f.Replace("x")} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	}
	if f.Applied() != a || len(f.Control().Namespaces) != 1 {
		t.Error("where the state stood is forgotten")
	}
}
