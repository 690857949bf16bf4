package peer

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

type sample struct {
	S    string
	B    []byte
	N    int64
	U    uint64
	F    float64
	T    time.Time
	Yes  bool
	ID   kv.NamespaceID
	List []inner
	Map  map[string]int
	Opt  *inner
	Max  uint64
}

type inner struct {
	Key  string
	Revs []kv.Revision
}

func fullSample() sample {
	return sample{
		S: strings.Repeat("ü", 200), B: bytes.Repeat([]byte{0}, 70_000), N: -1 << 40, U: 1 << 63, F: 1.5,
		T: time.Unix(1_700_000_000, 5).UTC(), Yes: true, ID: kv.NamespaceID{1, 2, 3},
		List: []inner{{"a", []kv.Revision{1, 2, 1 << 50}}, {"", nil}}, Map: map[string]int{"x": 1},
		Opt: &inner{Key: "o"}, Max: 1<<64 - 1,
	}
}

func TestMsgpackRoundTrip(t *testing.T) {
	for _, want := range []sample{{}, fullSample()} {
		b, err := Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("List")) {
			t.Error("field names travel")
		}
		var got sample
		if err := Decode(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.T = got.T.UTC(); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		for i := range min(len(b), 2000) { // every way to cut it is an error
			if err := Decode(b[:i], new(sample)); !errors.Is(err, ErrMsgpack) {
				t.Fatalf("cut at %d: %v", i, err)
			}
		}
		if err := Decode(append(b, 0xc0), new(sample)); !errors.Is(err, ErrMsgpack) {
			t.Errorf("a value behind the value: %v", err)
		}
	}
	ns := kv.Namespace{Title: "default", WrappedKey: []byte("k"), Created: 1}
	ctl := kv.Control{Epoch: kv.Epoch{9}, Revision: 7, Namespaces: []kv.Namespace{ns}}
	b, err := Encode(ctl)
	if err != nil {
		t.Fatal(err)
	}
	var got kv.Control
	if err := Decode(b, &got); err != nil || !reflect.DeepEqual(got, ctl) {
		t.Errorf("control state: %+v, %v", got, err)
	}
}

// killers are inputs that make the library allocate gigabytes or overflow its stack.
var killers = map[string][]byte{
	"5 bytes, array of 4 Gi": {0xdd, 0xff, 0xff, 0xff, 0xff},
	"5 bytes, map of 4 Gi":   {0xdf, 0xff, 0xff, 0xff, 0xff},
	"5 bytes, 4 GiB of bin":  {0xc6, 0xff, 0xff, 0xff, 0xff},
	"5 bytes, 4 GiB of str":  {0xdb, 0xff, 0xff, 0xff, 0xff},
	"6 bytes, 4 GiB of ext":  {0xc9, 0xff, 0xff, 0xff, 0xff, 0x01},
	"array of 65535":         {0xdc, 0xff, 0xff},
	"map of 65535":           {0xde, 0xff, 0xff, 0xc0},
	"nested arrays":          bytes.Repeat([]byte{0x91}, MaxFrame-1),
	"nested maps":            bytes.Repeat([]byte{0x81, 0xc0}, MaxFrame/2-1),
	"nested array32":         bytes.Repeat([]byte{0xdd, 0, 0, 0, 1}, 200_000),
	"8 levels, then a huge":  append(bytes.Repeat([]byte{0x91}, 8), 0xdd, 0x7f, 0xff, 0xff, 0xff),
	"a million nils":         append([]byte{0x93, 0xdd, 0, 0x0f, 0xff, 0}, bytes.Repeat([]byte{0xc0}, 0x0fff02)...),
	"never used code":        {0xc1},
	"nothing":                {},
	"more than a frame":      append([]byte{0xc6, 0, 0x20, 0, 0}, make([]byte, 0x200000)...),
}

func TestMsgpackKillers(t *testing.T) {
	for name, in := range killers {
		var into struct {
			List []inner
			Map  map[string]sample
			B    []byte
		}
		var err error
		if n := allocated(func() { err = Decode(in, &into) }); n > 1<<20 {
			t.Errorf("%s: allocated %d bytes", name, n)
		}
		if !errors.Is(err, ErrMsgpack) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMsgpackDepthLimit(t *testing.T) {
	deep := func(n int) []byte { return append(bytes.Repeat([]byte{0x91}, n), 0xc0) }
	if err := checkMsgpack(deep(maxMsgpackDepth)); err != nil {
		t.Errorf("%d levels: %v", maxMsgpackDepth, err)
	}
	if err := checkMsgpack(deep(maxMsgpackDepth + 1)); err == nil {
		t.Errorf("%d levels are accepted", maxMsgpackDepth+1)
	}
}

func FuzzDecode(f *testing.F) {
	for _, in := range killers {
		f.Add(in[:min(len(in), 4096)])
	}
	good, _ := Encode(fullSample())
	f.Add(good[:300])
	small, _ := Encode(sample{S: "x", List: []inner{{"k", []kv.Revision{1}}}})
	f.Add(small)
	f.Fuzz(func(t *testing.T, in []byte) {
		var s sample
		if err := Decode(in, &s); err != nil {
			if !errors.Is(err, ErrMsgpack) {
				t.Fatalf("%v does not wrap ErrMsgpack", err)
			}
			return
		}
		b, err := Encode(s)
		if err != nil {
			return // a time that the format cannot hold
		}
		if err := checkMsgpack(b); len(b) <= MaxFrame && err != nil {
			t.Fatalf("what was encoded is refused: %v", err)
		}
	})
}
