package state

import (
	"cmp"
	"reflect"
	"strconv"
	"testing"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

func txnOf(members ...command.Op) command.Op {
	return command.Op{Kind: command.KindTxn, Members: members}
}

func check(key string, c command.Cond) command.Op {
	return command.Op{Kind: command.KindCheck, Namespace: ns1, Key: key, Cond: c}
}

func atRevision(rev kv.Revision) command.Cond {
	return command.Cond{Kind: command.CondRevision, EpochTag: [4]byte(testEpoch[12:]), Revision: rev}
}

var (
	mustExist = command.Cond{Kind: command.CondPresent}
	mustNot   = command.Cond{Kind: command.CondAbsent}
)

// TestTransaction: what is carried out takes one revision for each change, over namespaces, and each result says what it
// is good for.
func TestTransaction(t *testing.T) {
	f := newState(t)
	f.at(1, create(ns2, "two"), put("a", "1"), in(ns2, put("a", "2")), put("gone", "3")) // revisions 2 to 5
	r := f.at(2,
		txnOf(
			check("a", atRevision(3)), in(ns2, check("a", mustExist)), check("new", mustNot), check("other", mustNot),
			put("a", "4"), in(ns2, put("b", "5")), del("gone"), del("never"), put("new", "6"),
		),
		put("new", "7"),
	)
	want := command.OpResult{Revision: 9, AsOf: 10, Members: []command.OpResult{
		{Current: 3, AsOf: 5}, {Current: 4, AsOf: 10}, {AsOf: 5}, {AsOf: 10}, // two of the checked keys are changed later
		{Revision: 6, AsOf: 10}, {Revision: 7, AsOf: 10}, {Revision: 8, AsOf: 10}, {AsOf: 10}, {Revision: 9, AsOf: 9},
	}}
	if !reflect.DeepEqual(r.Ops[0], want) || r.Ops[1].Revision != 10 {
		t.Errorf("got  %+v\nwant %+v", r.Ops[0], want)
	}
	for key, value := range map[string]string{"a": "4", "new": "7"} {
		if got := f.get(ns1, key); string(got.Value) != value {
			t.Errorf("%s is %q", key, got.Value)
		}
	}
	if got := f.get(ns2, "b"); string(got.Value) != "5" || !f.get(ns1, "gone").Absent {
		t.Errorf("b is %q, gone %+v", got.Value, f.get(ns1, "gone"))
	}
}

// TestTransactionRefused: one objection, and nothing is changed; all that have one are told, with what they met.
func TestTransactionRefused(t *testing.T) {
	f := newState(t)
	f.at(10, put("a", "1"), put("b", "1"), putUntil("old", "1", 10), putBlob("big", 7)) // revisions 2 to 5; "old" has expired
	before := dump(t, f.State, keyApplied)
	const failed, missing, internal = kv.CodeConditionFailed, kv.CodeNamespaceNotFound, kv.CodeInternal
	for name, tc := range map[string]struct {
		txn   command.Op
		code  kv.Code
		codes []kv.Code
		now   []kv.Revision
	}{
		"all that fail are told": {
			txnOf(check("a", atRevision(9)), check("b", mustExist), check("none", mustExist), put("new", "1"), check("b", mustNot)),
			failed,
			[]kv.Code{failed, "", failed, "", failed},
			[]kv.Revision{2, 3, 0, 0, 3},
		},
		"the last one counts too": {txnOf(put("a", "2"), del("b"), check("none", mustExist)), failed, []kv.Code{"", "", failed}, []kv.Revision{0, 0, 0}},
		"a write's own condition": {txnOf(put("a", "2"), when(put("b", "2"), mustNot)), failed, []kv.Code{"", failed}, []kv.Revision{0, 3}},
		"another epoch": {
			txnOf(check("a", command.Cond{Kind: command.CondRevision, EpochTag: [4]byte{1}, Revision: 2}), del("a")),
			failed,
			[]kv.Code{failed, ""},
			[]kv.Revision{2, 0},
		},
		"an expired key is absent":   {txnOf(check("old", mustExist), del("a")), failed, []kv.Code{failed, ""}, []kv.Revision{0, 0}},
		"no such namespace":          {txnOf(del("a"), in(ns2, put("a", "1"))), missing, []kv.Code{"", missing}, []kv.Revision{0, 0}},
		"what it writes is not seen": {txnOf(put("new", "1"), check("new", mustExist)), failed, []kv.Code{"", failed}, []kv.Revision{0, 0}},
		"a blob of another key":      {txnOf(del("a"), putBlob("b", 7)), internal, []kv.Code{"", internal}, []kv.Revision{0, 0}},
		"a blob twice":               {txnOf(putBlob("a", 8), putBlob("b", 8)), internal, []kv.Code{"", internal}, []kv.Revision{0, 0}},
		"nothing at all":             {txnOf(), internal, nil, nil},
	} {
		r := f.at(10, tc.txn).Ops[0]
		if r.Code != tc.code || r.Revision != 0 || len(r.Members) != len(tc.codes) {
			t.Fatalf("%s: %+v", name, r)
		}
		for i, m := range r.Members {
			if want := (command.OpResult{Code: tc.codes[i], Current: tc.now[i], AsOf: 5}); !reflect.DeepEqual(m, want) {
				t.Errorf("%s: member %d: got %+v, want %+v", name, i, m, want)
			}
		}
		if after := dump(t, f.State, keyApplied); after != before {
			t.Errorf("%s: it changed something\n%s", name, firstDifference(after, before))
		}
	}
	r := f.at(10, txnOf(check("old", mustNot), putBlob("big", 7), put("old", "2"))).Ops[0]
	if r.Code != "" || r.Revision != 7 {
		t.Errorf("a key may keep its own blob, and an expired one may be made anew: %+v", r)
	}
}

// TestTransactionIsSeenWhole: two accounts always hold 100 together, for whoever reads them while transfers are applied.
func TestTransactionIsSeenWhole(t *testing.T) {
	f := newState(t)
	f.at(1, put("a", "100"), put("b", "0"))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			page, err := f.List(ListQuery{Namespace: ns1, Limit: 10, Values: true})
			if err != nil || len(page.Items) != 2 {
				t.Errorf("%d keys, %v", len(page.Items), err)
				return
			}
			a, _ := strconv.Atoi(string(page.Items[0].Item.Value))
			b, _ := strconv.Atoi(string(page.Items[1].Item.Value))
			if a+b != 100 {
				t.Errorf("half a transaction was seen: %d + %d at revision %d", a, b, page.Applied.Revision)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	for i := range 300 {
		a := strconv.Itoa(i % 101)
		b := strconv.Itoa(100 - i%101)
		if r := f.at(2, txnOf(put("a", a), put("b", b))); r.Ops[0].Code != "" {
			t.Fatalf("%+v", r)
		}
	}
	close(stop)
	<-done
}

// transaction tries every member by itself on the state as it is; if all pass, they are carried out without conditions.
func (m *model) transaction(op command.Op, r *command.OpResult) (deeds []deed) {
	r.Members = make([]command.OpResult, len(op.Members))
	used := map[kv.BlobID]bool{}
	for i, member := range op.Members {
		res := &r.Members[i]
		_, live := m.titles[member.Namespace]
		old, there := m.keys[slotKey{member.Namespace, member.Key}]
		there = live && there && !m.gone(old)
		switch {
		case !live:
			res.Code = kv.CodeNamespaceNotFound
		case !m.holds(member.Cond, old, there):
			res.Code = kv.CodeConditionFailed
		case used[member.Blob], m.taken(member):
			res.Code = kv.CodeInternal
		}
		if there && (res.Code == kv.CodeConditionFailed || member.Kind == command.KindCheck) {
			res.Current = old.Revision
		}
		if !member.Blob.IsZero() {
			used[member.Blob] = true
		}
		r.Code = cmp.Or(r.Code, res.Code)
		deeds = append(deeds, deed{member, res, m.rev})
	}
	if r.Code != "" {
		return deeds
	}
	for i, member := range op.Members {
		if member.Kind != command.KindCheck {
			member.Cond = command.Cond{}
			m.write(member, true, &r.Members[i])
			deeds[i].upTo = m.rev
			r.Revision = max(r.Revision, r.Members[i].Revision)
		}
	}
	return deeds
}

// taken says whether another key of the namespace names a put's blob.
func (m *model) taken(op command.Op) bool {
	for k, old := range m.keys {
		if k.ns == op.Namespace && k.key != op.Key && !op.Blob.IsZero() && old.Blob == op.Blob {
			return true
		}
	}
	return false
}
