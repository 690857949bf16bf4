package feed

import (
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

var (
	epoch = kv.Epoch{15: 1}
	nsA   = kv.NamespaceID{15: 0xa}
	nsB   = kv.NamespaceID{15: 0xb}
)

// everyKind has a record of each kind, the emptiest and a full one.
func everyKind() []kv.Record {
	return []kv.Record{
		{Epoch: epoch, Prev: 1, To: 2, Kind: kv.RecordKeys, Hashes: []uint64{}},
		{Epoch: epoch, Prev: 5, To: 7, Kind: kv.RecordKeys, Hashes: []uint64{1, math.MaxUint64}},
		{Epoch: epoch, Prev: 1, To: 2, Kind: kv.RecordNamespace, Namespace: nsA},
		{Prev: 0, To: math.MaxUint64, Kind: kv.RecordAll},
		{Epoch: epoch, Prev: 1, To: 2, Kind: kv.RecordFloors, Floors: []kv.Floor{}},
		{Epoch: epoch, Prev: 1, To: 9, Kind: kv.RecordFloors, Floors: []kv.Floor{{Namespace: nsA, Revision: 9}, {Namespace: nsB, Revision: 2}}},
		{Epoch: epoch, Prev: 1, To: 9, Kind: kv.RecordFloors, Floors: make([]kv.Floor, MaxFloors)},
		{Epoch: epoch, Prev: 1, To: 9, Kind: kv.RecordKeys, Hashes: make([]uint64, MaxHashes)},
	}
}

func TestRoundTrip(t *testing.T) {
	const maxPayload = 1<<20 - 2 // of a peer frame
	for _, rec := range everyKind() {
		enc := Append([]byte("before"), rec)[len("before"):]
		got, err := Decode(enc)
		if err != nil || !reflect.DeepEqual(got, rec) {
			t.Errorf("kind %d: %v\ngot  %+v\nwant %+v", rec.Kind, err, got, rec)
		}
		if len(enc) > maxPayload {
			t.Errorf("kind %d: %d bytes do not fit a peer frame", rec.Kind, len(enc))
		}
	}
}

// TestFormat pins the bytes: nodes of different builds talk to each other.
func TestFormat(t *testing.T) {
	rec := kv.Record{Epoch: epoch, Prev: 1, To: 9, Kind: kv.RecordFloors, Floors: []kv.Floor{{Namespace: nsA, Revision: 8}}}
	id := func(last string) string { return strings.Repeat("00", 15) + last }
	num := func(last string) string { return strings.Repeat("00", 7) + last }
	want := "01" + "04" + id("01") + num("01") + num("09") + id("0a") + num("08")
	if got := hex.EncodeToString(Append(nil, rec)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	enc := func(rec kv.Record) []byte { return Append(nil, rec) }
	floors := func(n int, rev kv.Revision) kv.Record {
		rec := kv.Record{Prev: 1, To: 9, Kind: kv.RecordFloors, Floors: make([]kv.Floor, n)}
		rec.Floors[n-1].Revision = rev
		return rec
	}
	for name, in := range map[string][]byte{
		"nothing":            nil,
		"cut short":          enc(kv.Record{To: 1, Kind: kv.RecordAll})[:headBytes-1],
		"another version":    append([]byte{codecVersion + 1}, enc(kv.Record{To: 1, Kind: kv.RecordAll})[1:]...),
		"kind zero":          enc(kv.Record{To: 1}),
		"kind of the future": enc(kv.Record{To: 1, Kind: kv.RecordFloors + 1}),
		"covers nothing":     enc(kv.Record{Prev: 1, To: 1, Kind: kv.RecordAll}),
		"half a hash":        append(enc(kv.Record{To: 1, Kind: kv.RecordKeys}), 1),
		"too many hashes":    enc(kv.Record{To: 1, Kind: kv.RecordKeys, Hashes: make([]uint64, MaxHashes+1)}),
		"half a namespace":   enc(kv.Record{To: 1, Kind: kv.RecordNamespace})[:headBytes+8],
		"left over":          append(enc(kv.Record{To: 1, Kind: kv.RecordAll}), 0),
		"half a floor":       enc(floors(2, 9))[:headBytes+floorBytes+16],
		"a floor too high":   enc(floors(3, 10)),
		"too many floors":    enc(floors(MaxFloors+1, 9)),
	} {
		if rec, err := Decode(in); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, rec, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, rec := range everyKind() {
		if len(rec.Hashes)+len(rec.Floors) < 10 {
			f.Add(Append(nil, rec))
		}
	}
	f.Add(append(Append(nil, kv.Record{To: 1, Kind: kv.RecordFloors}), make([]byte, floorBytes+1)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		rec, err := Decode(in)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("unclassified error %v", err)
			}
			return
		}
		if got := Append(nil, rec); string(got) != string(in) {
			t.Fatalf("read %x, wrote %x", in, got)
		}
	})
}
