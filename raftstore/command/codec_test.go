package command

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

func id(b byte) (v [16]byte) {
	for i := range v {
		v[i] = b
	}
	return v
}

// everyKind has each kind of operation and each kind of condition, with every field of it set.
func everyKind() Batch {
	return Batch{MeshTime: 1_700_000_000_123, Ops: []Op{
		{Kind: KindInit, Cluster: id(1), Epoch: id(2), Namespace: id(3), Title: "default", WrappedKey: []byte("wrapped")},
		{
			Kind: KindPut, Namespace: id(3), Key: "a/\x00//b\u00fc", WriteID: id(4), Expiry: math.MaxInt64, Size: 5,
			Metadata: []byte("meta"), Value: []byte("value"),
			Cond: Cond{Kind: CondRevision, EpochTag: [4]byte{9, 8, 7, 6}, Revision: math.MaxUint64},
		},
		{Kind: KindPut, Namespace: id(3), Key: strings.Repeat("k", kv.MaxKeyBytes), Size: kv.MaxValueBytes, Blob: id(5), Cond: Cond{Kind: CondAbsent}},
		{Kind: KindPut, Namespace: id(3), Key: "empty"},
		{Kind: KindDelete, Namespace: id(3), Key: "a", Cond: Cond{Kind: CondPresent}},
		{Kind: KindCreateNamespace, Namespace: id(6), Title: "t", WrappedKey: []byte{1}},
		{Kind: KindRenameNamespace, Namespace: id(6), Title: "u"},
		{Kind: KindDeleteNamespace, Namespace: id(6)},
		{Kind: KindSweep, Limit: math.MaxUint32, Expiry: math.MaxInt64},
		{Kind: KindTrim, Revision: math.MaxUint64},
		{Kind: KindNewEpoch, Epoch: id(7)},
		{Kind: KindTxn, Members: []Op{
			{Kind: KindCheck, Namespace: id(3), Key: "checked", Cond: Cond{Kind: CondRevision, EpochTag: [4]byte{1}, Revision: 9}},
			{Kind: KindCheck, Namespace: id(6), Key: "any"},
			{Kind: KindPut, Namespace: id(3), Key: "k", WriteID: id(4), Size: 1, Value: []byte("v"), Metadata: []byte("m"), Cond: Cond{Kind: CondAbsent}},
			{Kind: KindPut, Namespace: id(6), Key: "k", Size: 1 << 20, Blob: id(8)},
			{Kind: KindDelete, Namespace: id(3), Key: "d", Cond: Cond{Kind: CondPresent}},
		}},
		{Kind: KindRestoreBegin, Restore: &Restore{ID: id(8), Replace: true}},
		{Kind: KindRestoreChunk, Restore: &Restore{ID: id(8), Seq: math.MaxUint64, Records: []byte("records")}},
		{Kind: KindRestoreEnd, Epoch: id(9), Revision: math.MaxUint64, Restore: &Restore{ID: id(8), Chunks: math.MaxUint64, Keys: math.MaxUint64, Bytes: math.MaxUint64}},
		{Kind: KindRestoreEnd, Limit: math.MaxUint32, Restore: &Restore{ID: id(8), Drop: true, Touched: math.MaxInt64}},
	}}
}

func TestRoundTrip(t *testing.T) {
	for _, b := range []Batch{everyKind(), {Ops: []Op{}}, {MeshTime: -1, Ops: []Op{}}} {
		enc := Append([]byte("before"), &b)
		got, err := Decode(enc[len("before"):])
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, b) {
			t.Errorf("got  %+v\nwant %+v", got, b)
		}
	}
}

// TestFormat pins the bytes: logs outlive builds, so a change here needs a new version byte.
func TestFormat(t *testing.T) {
	b := Batch{MeshTime: 1000, Ops: []Op{
		{Kind: KindPut, Namespace: id(3), Key: "k", WriteID: id(4), Expiry: 300, Size: 2, Metadata: []byte("m"), Value: []byte("vv"), Cond: Cond{Kind: CondRevision, EpochTag: [4]byte{1, 2, 3, 4}, Revision: 7}},
		{Kind: KindDelete, Namespace: id(3), Key: "d"},
		{Kind: KindSweep, Limit: 5, Expiry: 300},
		{Kind: KindNewEpoch, Epoch: id(6)},
		{Kind: KindTxn, Members: []Op{
			{Kind: KindCheck, Namespace: id(3), Key: "c", Cond: Cond{Kind: CondPresent}},
			{Kind: KindDelete, Namespace: id(3), Key: "d"},
		}},
	}}
	want := "01" + "d00f" + "05" +
		"02" + strings.Repeat("03", 16) + "016b" + "030102030407" + strings.Repeat("04", 16) + "ac02" + "02" + "016d" + "00" + "027676" +
		"03" + strings.Repeat("03", 16) + "0164" + "00" +
		"0705ac02" +
		"09" + strings.Repeat("06", 16) +
		"0a02" + "80" + strings.Repeat("03", 16) + "0163" + "02" + "03" + strings.Repeat("03", 16) + "0164" + "00"
	if got := hex.EncodeToString(Append(nil, &b)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestSizeIsAnUpperBound(t *testing.T) {
	b := everyKind()
	sum := BatchOverhead
	for i := range b.Ops {
		one := len(appendOp(nil, &b.Ops[i]))
		if one > Size(&b.Ops[i]) {
			t.Errorf("kind %d takes %d bytes, Size says %d", b.Ops[i].Kind, one, Size(&b.Ops[i]))
		}
		sum += Size(&b.Ops[i])
	}
	if n := len(Append(nil, &b)); n > sum {
		t.Errorf("the batch takes %d bytes, bound %d", n, sum)
	}
}

func TestDecodeAliasesInput(t *testing.T) {
	b := Batch{Ops: []Op{{Kind: KindPut, Key: "k", Value: []byte("value")}}}
	enc := Append(nil, &b)
	got, err := Decode(enc)
	if err != nil {
		t.Fatal(err)
	}
	if v := got.Ops[0].Value; cap(v) != len(v) {
		t.Errorf("appending to a decoded value would overwrite its neighbour: len %d cap %d", len(v), cap(v))
	}
	enc[len(enc)-1] = 'X'
	if string(got.Ops[0].Value) != "valuX" {
		t.Error("the value was copied; the comment of Decode says it aliases")
	}
}

func txn(members ...Op) Op { return Op{Kind: KindTxn, Members: members} }

func many(n int) []Op {
	return slices.Repeat([]Op{{Kind: KindCheck, Namespace: id(3), Key: "k"}}, n)
}

// TestLargestTransaction: as many members as a batch has operations, and no more.
func TestLargestTransaction(t *testing.T) {
	b := Batch{Ops: []Op{txn(many(kv.MaxBatchOps)...)}}
	if got, err := Decode(Append(nil, &b)); err != nil || got.Ops[0].Weight() != kv.MaxBatchOps {
		t.Errorf("%d members: %v", kv.MaxBatchOps, err)
	}
	larger := txn(many(kv.MaxBatchOps + 1)...)
	if err := larger.Validate(); !errors.Is(err, ErrMalformed) {
		t.Errorf("one more: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	head := func(ops uint64) []byte { return binary.AppendUvarint([]byte{codecVersion, 0}, ops) }
	one := func(op Op) []byte { return Append(nil, &Batch{Ops: []Op{op}}) }
	full := everyKind()
	cases := []struct {
		name string
		in   []byte
		want error
	}{
		{"nothing", nil, ErrMalformed},
		{"version of the future", []byte{codecVersion + 1, 0, 0}, ErrUnknown},
		{"kind of the future", append(head(1), byte(KindRestoreEnd)+1, 0), ErrUnknown},
		{"kind zero", append(head(1), 0, 0), ErrUnknown},
		{"condition of the future", one(Op{Kind: KindDelete, Key: "k", Cond: Cond{Kind: 4}}), ErrUnknown},
		{"more operations than bytes", head(1 << 40), ErrMalformed},
		{"more operations than a batch has", append(head(kv.MaxBatchOps+1), make([]byte, 3*kv.MaxBatchOps)...), ErrMalformed},
		{"left over", append(Append(nil, &full), 0), ErrMalformed},
		{"empty key", one(Op{Kind: KindDelete}), ErrMalformed},
		{"a check by itself", one(Op{Kind: KindCheck, Key: "k"}), ErrUnknown},
		{"a transaction of nothing", one(Op{Kind: KindTxn}), ErrMalformed},
		{"a transaction in a transaction", one(txn(txn(Op{Kind: KindCheck, Key: "k"}))), ErrMalformed},
		{"a namespace in a transaction", one(txn(Op{Kind: KindDeleteNamespace})), ErrMalformed},
		{"a namespace with others in a transaction", one(txn(Op{Kind: KindDelete, Key: strings.Repeat("k", 40)}, Op{Kind: KindDeleteNamespace})), ErrUnknown},
		{"a kind of the future in a transaction", one(txn(Op{Kind: KindDelete, Key: strings.Repeat("k", 40)}, Op{Kind: 77})), ErrUnknown},
		{"an empty key in a transaction", one(txn(Op{Kind: KindDelete, Key: strings.Repeat("k", 40)}, Op{Kind: KindCheck})), ErrMalformed},
		{"more members than bytes", append(head(1), byte(KindTxn), 0xff, 0x7), ErrMalformed},
		{"more members than a batch has operations", append(append(head(1), byte(KindTxn), 0x81, 0x08), make([]byte, 64<<10)...), ErrMalformed},
		{"more than a batch has, with those in transactions", Append(nil, &Batch{Ops: []Op{txn(many(kv.MaxBatchOps)...), {Kind: KindSweep}}}), ErrMalformed},
		{"long key", one(Op{Kind: KindDelete, Key: strings.Repeat("k", kv.MaxKeyBytes+1)}), ErrMalformed},
		{"long title", one(Op{Kind: KindCreateNamespace, Title: strings.Repeat("t", kv.MaxTitleBytes+1)}), ErrMalformed},
		{"long metadata", one(Op{Kind: KindPut, Key: "k", Metadata: make([]byte, kv.MaxMetadataBytes+sealOverhead+1)}), ErrMalformed},
		{"long value", one(Op{Kind: KindPut, Key: "k", Value: make([]byte, kv.MaxInlineValueBytes+sealOverhead+1)}), ErrMalformed},
		{"negative expiry", one(Op{Kind: KindPut, Key: "k", Expiry: -1}), ErrMalformed},
		{"large size", one(Op{Kind: KindPut, Key: "k", Size: kv.MaxValueBytes + 1}), ErrMalformed},
		{"field longer than the input", append(append(append(head(1), byte(KindCreateNamespace)), make([]byte, 16)...), 0xff, 0xff, 0xff, 0xff, 0x0f), ErrMalformed},
	}
	for _, c := range cases {
		if _, err := Decode(c.in); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	enc := Append(nil, &full)
	for n := range enc {
		if _, err := Decode(enc[:n]); err == nil {
			t.Errorf("an entry cut after %d of %d bytes was decoded", n, len(enc))
		}
	}
}

// TestValidateAgreesWithDecode: what Validate accepts can be read back, so that no proposer can poison the log.
func TestValidateAgreesWithDecode(t *testing.T) {
	ops := append(everyKind().Ops,
		Op{Kind: KindPut, Key: "k", Metadata: make([]byte, kv.MaxMetadataBytes+sealOverhead), Value: make([]byte, kv.MaxInlineValueBytes+sealOverhead)},
		Op{Kind: KindPut, Key: "k", Metadata: make([]byte, kv.MaxMetadataBytes+sealOverhead+1)},
		Op{Kind: KindPut, Key: "k", Expiry: math.MinInt64},
		Op{Kind: KindPut, Key: "k", Value: []byte("v"), Blob: id(1)},
		Op{Kind: KindDelete},
		Op{Kind: KindDelete, Key: "k", Cond: Cond{Kind: 200}},
		Op{Kind: 77},
		Op{Kind: KindCheck, Key: "k"},
		txn(Op{Kind: KindCheck, Key: "k", Cond: Cond{Kind: 77}}),
		txn(many(kv.MaxBatchOps)...),
	)
	refused := 0
	for _, op := range ops {
		_, err := Decode(Append(nil, &Batch{Ops: []Op{op}}))
		if verr := op.Validate(); verr == nil && err != nil {
			t.Errorf("kind %d: Validate accepts what Decode refuses: %v", op.Kind, err)
		} else if verr != nil {
			refused++
		}
	}
	if refused != 8 {
		t.Errorf("Validate refused %d operations, want 8", refused)
	}
}

func FuzzDecode(f *testing.F) {
	full := everyKind()
	f.Add(Append(nil, &full))
	for _, op := range full.Ops {
		f.Add(Append(nil, &Batch{MeshTime: 1, Ops: []Op{op}}))
	}
	f.Add(binary.AppendUvarint([]byte{codecVersion, 0}, math.MaxUint64))
	f.Add([]byte{codecVersion, 0, 1, byte(KindPut)})
	f.Add([]byte{codecVersion, 0, 1, byte(KindTxn), 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add(Append(nil, &Batch{Ops: []Op{txn(txn(txn(many(2)...)))}}))
	f.Add(Append(nil, &Batch{Ops: []Op{txn(many(3)...), txn(many(2)...), {Kind: KindSweep}}}))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := Decode(in)
		if err != nil {
			if !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrMalformed) {
				t.Fatalf("unclassified error %v", err)
			}
			return
		}
		bound := BatchOverhead
		for i := range got.Ops {
			bound += Size(&got.Ops[i])
		}
		enc := Append(nil, &got)
		if len(enc) > len(in) || len(enc) > bound {
			t.Fatalf("encoded again: %d bytes, input %d, bound %d", len(enc), len(in), bound)
		}
		again, err := Decode(enc)
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Fatalf("%v\n%+v\n%+v", err, got, again)
		}
		if !bytes.Equal(enc, Append(nil, &again)) {
			t.Fatal("the encoding is not stable")
		}
	})
}

func TestStagedRoundTrip(t *testing.T) {
	all := everyKind()
	ops := []Op{all.Ops[5], all.Ops[2], all.Ops[3]} // a namespace, a large value, an empty one
	var records []byte
	for i := range ops {
		ops[i].Cond, ops[i].Revision = Cond{}, kv.Revision(i*1000)
		before := len(records)
		records = AppendStaged(records, &ops[i])
		if n := len(records) - before; n > StagedSize(&ops[i]) {
			t.Errorf("kind %d takes %d bytes, StagedSize says %d", ops[i].Kind, n, StagedSize(&ops[i]))
		}
	}
	var got []Op
	if err := EachStaged(records, func(op *Op) error { got = append(got, *op); return nil }); err != nil || !reflect.DeepEqual(got, ops) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, got, ops)
	}
	stop := errors.New("stop")
	if err := EachStaged(records, func(*Op) error { return stop }); err != stop {
		t.Errorf("the callback's error became %v", err)
	}
	bad := map[string][]byte{"cut short": records[:len(records)-1]}
	for _, op := range all.Ops {
		if op.Kind != KindCreateNamespace && (op.Kind != KindPut || op.Cond.Kind != CondNone) {
			bad[fmt.Sprintf("kind %d, condition %d", op.Kind, op.Cond.Kind)] = AppendStaged(nil, &op)
		}
	}
	for name, records := range bad {
		if err := EachStaged(records, func(*Op) error { return nil }); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLargestChunk: what MaxStagedBytes allows fits into a log entry.
func TestLargestChunk(t *testing.T) {
	op := Op{Kind: KindRestoreChunk, Restore: &Restore{ID: id(1), Seq: math.MaxUint64, Records: make([]byte, MaxStagedBytes)}}
	if err := op.Validate(); err != nil {
		t.Error(err)
	}
	if n := Size(&op) + BatchOverhead; n > kv.MaxBatchBytes {
		t.Errorf("%d bytes, a log entry has %d", n, kv.MaxBatchBytes)
	}
	op.Restore.Records = append(op.Restore.Records, 0)
	if err := op.Validate(); !errors.Is(err, ErrMalformed) {
		t.Errorf("one byte more: %v", err)
	}
	for _, op := range []Op{
		{Kind: KindRestoreBegin}, {Kind: KindRestoreChunk, Restore: &Restore{}}, {Kind: KindRestoreEnd, Restore: &Restore{Drop: true, Touched: -1}},
	} {
		if err := op.Validate(); !errors.Is(err, ErrMalformed) {
			t.Errorf("kind %d, %+v: %v", op.Kind, op.Restore, err)
		}
	}
}
