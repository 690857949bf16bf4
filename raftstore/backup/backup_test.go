package backup

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

func newKEK(t testing.TB, b byte) *seal.KEK {
	t.Helper()
	k, err := seal.NewKEK(bytes.Repeat([]byte{b}, seal.KEKBytes))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func id(b byte) (v [16]byte) {
	for i := range v {
		v[i] = b
	}
	return v
}

var testHeader = Header{Cluster: id(1), Epoch: id(2), Revision: 1000, MeshTime: 1_700_000_000_123, Created: 1_700_000_000_456, Version: "v1.2.3"}

type entry struct {
	key   string
	item  kv.Item
	large []byte // sealed, when item.Blob is set
}

type space struct {
	ns   kv.Namespace
	keys []entry
}

// content is a few namespaces with all that a key can have. large is the plaintext size of the large values.
func content(t testing.TB, kek *seal.KEK, large int) []space {
	t.Helper()
	wrapped := func(ns kv.NamespaceID) []byte {
		w, err := kek.NewDataKey(ns)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	rng := rand.New(rand.NewPCG(1, uint64(large)))
	blob := make([]byte, seal.SealedSize(int64(large)))
	for i := range blob {
		blob[i] = byte(rng.Uint32())
	}
	item := func(rev uint64, value string) kv.Item {
		return kv.Item{Revision: kv.Revision(rev), WriteID: id(byte(rev)), Size: int64(len(value)), Value: []byte(value)}
	}
	meta, mortal := item(3, "with metadata"), item(4, "mortal")
	meta.Metadata, mortal.Expiry = []byte("sealed metadata"), 1_800_000_000
	big := kv.Item{Revision: 5, WriteID: id(5), Size: int64(large), Blob: kv.BlobID(id(9))}
	return []space{
		{kv.Namespace{ID: id(10), Title: "default", WrappedKey: wrapped(id(10)), Created: 1}, []entry{
			{"CANARY-key", item(2, "CANARY-value"), nil},
			{"big", big, blob},
			{"empty", kv.Item{Revision: 6, WriteID: id(6)}, nil},
			{"meta", meta, nil},
			{"mortal", mortal, nil},
			{"\xc3\xbc//", item(7, strings.Repeat("v", 3000)), nil},
		}},
		{kv.Namespace{ID: id(11), Title: "CANARY-title", WrappedKey: wrapped(id(11)), Created: 8}, nil},
		{kv.Namespace{ID: id(12), Title: "third", WrappedKey: wrapped(id(12)), Created: 9}, []entry{
			{"a", item(1000, "a"), nil}, {"big again", big, blob},
		}},
	}
}

func write(t testing.TB, w io.Writer, kek *seal.KEK, spaces []space) {
	t.Helper()
	bw, err := NewWriter(w, testHeader, kek)
	for _, s := range spaces {
		err = errors.Join(err, bw.Namespace(s.ns))
		for _, e := range s.keys {
			err = errors.Join(err, bw.Key(e.key, &e.item))
			for b := e.large; len(b) > 0; b = b[min(len(b), 10_000):] {
				err = errors.Join(err, bw.Data(b[:min(len(b), 10_000)]))
			}
		}
	}
	if err := errors.Join(err, bw.Close()); err != nil {
		t.Fatal(err)
	}
}

// read reads a whole backup back. What it returns is nothing unless the error is nil.
func read(r io.Reader, kek *seal.KEK) ([]space, *Reader, error) {
	br, err := NewReader(r)
	if err != nil {
		return nil, nil, err
	}
	if err := br.Unlock(kek); err != nil {
		return nil, br, err
	}
	var spaces []space
	for {
		rec, err := br.Next()
		if err == io.EOF {
			return spaces, br, nil
		}
		if err != nil {
			return nil, br, err
		}
		switch rec.Kind {
		case KindNamespace:
			ns := rec.Namespace
			ns.WrappedKey = bytes.Clone(ns.WrappedKey)
			spaces = append(spaces, space{ns: ns})
		case KindKey:
			s := &spaces[len(spaces)-1]
			e := entry{key: rec.Key, item: rec.Item}
			e.item.Value, e.item.Metadata = bytes.Clone(rec.Item.Value), bytes.Clone(rec.Item.Metadata)
			if rec.Blob > 0 {
				e.item.Blob = kv.BlobID(id(9))
			}
			s.keys = append(s.keys, e)
		case KindData:
			s := &spaces[len(spaces)-1]
			e := &s.keys[len(s.keys)-1]
			e.large = append(e.large, rec.Data...)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	kek := newKEK(t, 1)
	for _, large := range []int{70_000, 5 << 20} {
		want := content(t, kek, large)
		var b bytes.Buffer
		write(t, &b, kek, want)
		got, r, err := read(iotest.OneByteReader(bytes.NewReader(b.Bytes())), kek)
		if err != nil {
			t.Fatal(err)
		}
		h := r.Header()
		h.ID = testHeader.ID
		if h != testHeader {
			t.Errorf("header %+v", r.Header())
		}
		other := newKEK(t, 2)
		for i := range got {
			again, err := r.Rewrap(other, &got[i].ns)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.Unwrap(got[i].ns.ID, again); err != nil {
				t.Errorf("the data key for another mesh: %v", err)
			}
			if _, err := kek.Unwrap(got[i].ns.ID, got[i].ns.WrappedKey); !errors.Is(err, seal.ErrWrongKey) {
				t.Errorf("the data key is wrapped by the mesh's key: %v", err)
			}
			got[i].ns.WrappedKey = want[i].ns.WrappedKey
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got  %.300v\nwant %.300v", got, want)
		}
		blob := uint64(seal.SealedSize(int64(large)))
		if totals := r.Totals(); totals.Namespaces != 3 || totals.Keys != 8 || totals.Blobs != 2 || totals.BlobBytes != 2*blob {
			t.Errorf("totals %+v", totals)
		}
		s, err := Check(bytes.NewReader(b.Bytes()))
		if err != nil || s != r.Summary() || s.Key != kek.String() || s.Parts < 1 {
			t.Errorf("checked: %+v, %v; read: %+v", s, err, r.Summary())
		}
		parts, size, err := InspectEnd(b.Bytes()[b.Len()-EndBytes:])
		if err != nil || parts != s.Parts || size != s.Bytes {
			t.Errorf("its end: %d parts of %d bytes, %v", parts, size, err)
		}
		if i := bytes.Index(b.Bytes(), []byte("CANARY")); i >= 0 {
			t.Errorf("in clear at byte %d: %q", i, b.Bytes()[i:i+20])
		}
	}
}

// TestPartsAreBounded: however large the values are, no part is larger than it may be, and what is held is one part.
func TestPartsAreBounded(t *testing.T) {
	kek := newKEK(t, 1)
	var b bytes.Buffer
	write(t, &b, kek, content(t, kek, 5<<20))
	for _, f := range parts(t, b.Bytes()) {
		if len(f) > partHead+MaxPart+seal.Overhead+sumBytes {
			t.Errorf("a part of %d bytes", len(f))
		}
	}
}

// parts takes a backup apart: the head, each part, the end.
func parts(t testing.TB, b []byte) (out [][]byte) {
	t.Helper()
	r := bytes.NewReader(b)
	h, err := readHead(r)
	if err != nil {
		t.Fatal(err)
	}
	at := len(h.bytes())
	out = append(out, b[:at])
	for b[at] != markEnd {
		n := partHead + int(binary.BigEndian.Uint32(b[at+9:])) + sumBytes
		out = append(out, b[at:at+n])
		at += n
	}
	return append(out, b[at:])
}

// small is a backup whose every byte can be changed in turn.
func small(t testing.TB, kek *seal.KEK) []byte {
	var b bytes.Buffer
	spaces := content(t, kek, 70_000)
	spaces[0].keys = append(spaces[0].keys[:1:1], spaces[0].keys[2:]...) // without the large values
	spaces[2].keys = spaces[2].keys[:1]
	write(t, &b, kek, spaces)
	return b.Bytes()
}

// refused reports how a backup is refused, with the key and without; nil for either is a failure of the test.
func refused(t *testing.T, what string, b []byte, kek *seal.KEK) (keyed, keyless error) {
	t.Helper()
	_, _, keyed = read(bytes.NewReader(b), kek)
	_, keyless = Check(bytes.NewReader(b))
	for _, err := range []error{keyed, keyless} {
		known := false
		for _, want := range []error{ErrNotBackup, ErrVersion, ErrCut, ErrDamaged, seal.ErrWrongKey, seal.ErrVersion} {
			known = known || errors.Is(err, want)
		}
		if err != nil && !known {
			t.Errorf("%s: an error of no kind: %v", what, err)
		}
	}
	return keyed, keyless
}

// places are the positions in a backup at which something may differ: all but most of what lies within a sealed part, whose
// bytes are all alike.
func places(t *testing.T, whole []byte) (at []int) {
	const some = 23
	start := 0
	for _, frame := range parts(t, whole) {
		sealed := len(frame) - sumBytes - some
		for i := range frame {
			if start == 0 || i < partHead+seal.Overhead || i > sealed || i%some == 0 {
				at = append(at, start+i)
			}
		}
		start += len(frame)
	}
	return at
}

func TestDamageAnywhereIsFound(t *testing.T) {
	kek := newKEK(t, 1)
	whole := small(t, kek)
	all := places(t, whole)
	for _, at := range all {
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << (at % 8)
		if keyed, keyless := refused(t, fmt.Sprint("byte ", at), bad, kek); keyed == nil || keyless == nil {
			t.Errorf("byte %d of %d: %v, %v", at, len(whole), keyed, keyless)
		}
	}
	for _, n := range all {
		keyed, keyless := refused(t, fmt.Sprint("cut at ", n), whole[:n], kek)
		if n < len(magic) && !errors.Is(keyed, ErrNotBackup) || n >= len(magic) && (!errors.Is(keyed, ErrCut) || !errors.Is(keyless, ErrCut)) {
			t.Errorf("cut to %d of %d bytes: %v, %v", n, len(whole), keyed, keyless)
		}
	}
	if keyed, keyless := refused(t, "more", append(bytes.Clone(whole), 0), kek); !errors.Is(keyed, ErrDamaged) || !errors.Is(keyless, ErrDamaged) {
		t.Errorf("something behind the end: %v, %v", keyed, keyless)
	}
}

// resum repairs the checksum of a frame, as somebody would who changes a backup on purpose.
func resum(frame []byte) []byte {
	body := bytes.Clone(frame[:len(frame)-sumBytes])
	return appendSum(body, body)
}

// TestForgeries: whoever can repair every checksum, and has other backups of the same mesh, still needs the key.
func TestForgeries(t *testing.T) {
	kek := newKEK(t, 1)
	var one, two bytes.Buffer
	spaces := content(t, kek, 5<<20)
	write(t, &one, kek, spaces)
	write(t, &two, kek, spaces)
	p, q := parts(t, one.Bytes()), parts(t, two.Bytes())
	if len(p) < 6 {
		t.Fatalf("%d frames are too few", len(p))
	}
	number := func(frame []byte, n uint64, mark byte) []byte {
		f := bytes.Clone(frame)
		f[0] = mark
		binary.BigEndian.PutUint64(f[1:], n)
		return resum(f)
	}
	end := func(frames [][]byte) []byte {
		var size uint64
		for _, f := range frames {
			size += uint64(len(f) - partHead - sumBytes)
		}
		e := binary.BigEndian.AppendUint64([]byte{markEnd}, uint64(len(frames)))
		e = binary.BigEndian.AppendUint64(e, size)
		return appendSum(e, e)
	}
	build := func(head []byte, frames ...[]byte) []byte {
		return bytes.Join(append(append([][]byte{head}, frames...), end(frames)), nil)
	}
	n := len(p) - 2 // parts
	body := p[1 : n+1]
	swapped := append([][]byte{number(body[1], 1, markPart), number(body[0], 2, markPart)}, body[2:]...)
	within := append([][]byte{body[0], number(body[2], 2, markPart), number(body[1], 3, markPart)}, body[3:]...)
	dropped := append([][]byte{body[0]}, body[2:]...)
	for i := 1; i < len(dropped); i++ {
		dropped[i] = number(dropped[i], uint64(i+1), dropped[i][0])
	}
	twice := append([][]byte{body[0], number(body[0], 2, markPart)}, body[2:]...)
	foreign := append([][]byte{q[1]}, body[1:]...)
	flipped := bytes.Clone(body[0])
	flipped[partHead+40] ^= 1
	header := bytes.Clone(p[0])
	header[len(magic)+1+2+16+16+16+7] ^= 1 // the revision
	h, err := readHead(bytes.NewReader(p[0]))
	if err != nil {
		t.Fatal(err)
	}
	copy(header, resum(header[:len(h.raw)]))
	for name, forged := range map[string][]byte{
		"parts swapped":           build(p[0], swapped...),
		"two of a value swapped":  build(p[0], within...),
		"a part dropped":          build(p[0], dropped...),
		"the last part dropped":   build(p[0], append(body[:n-2:n-2], number(body[n-2], uint64(n-1), markLast))...),
		"a part twice":            build(p[0], twice...),
		"a part of another":       build(p[0], foreign...),
		"a byte changed":          build(p[0], append([][]byte{resum(flipped)}, body[1:]...)...),
		"the header changed":      build(header, body...),
		"the head of another":     build(q[0], body...),
		"another's header, lock":  build(append(bytes.Clone(q[0][:len(h.raw)]), p[0][len(h.raw):]...), body...),
		"everything but the last": build(p[0], number(body[0], 1, markLast)),
	} {
		if _, err := Check(bytes.NewReader(forged)); err != nil {
			t.Errorf("%s: the forgery is no good, its checksums do not fit: %v", name, err)
		}
		if keyed, _ := refused(t, name, forged, kek); !errors.Is(keyed, ErrDamaged) {
			t.Errorf("%s: %v", name, keyed)
		}
	}
	if keyed, _ := refused(t, "untouched", build(p[0], body...), kek); keyed != nil {
		t.Errorf("put together as it was: %v", keyed)
	}
}

func TestVersions(t *testing.T) {
	kek := newKEK(t, 1)
	whole := small(t, kek)
	future := bytes.Clone(whole)
	future[len(magic)] = 2
	for _, err := range []error{second(Check(bytes.NewReader(future))), second(Inspect(bytes.NewReader(future)))} {
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "format is 2") {
			t.Errorf("a format of the future: %v", err)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "a text": []byte("a file of quite another kind, and long"), "short": []byte("kvmesh-b")} {
		if _, err := Check(bytes.NewReader(b)); !errors.Is(err, ErrNotBackup) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestWrongKey(t *testing.T) {
	mine, other := newKEK(t, 1), newKEK(t, 2)
	_, _, err := read(bytes.NewReader(small(t, mine)), other)
	if !errors.Is(err, seal.ErrWrongKey) || !strings.Contains(err.Error(), mine.String()) || !strings.Contains(err.Error(), other.String()) {
		t.Errorf("%v", err)
	}
}

// TestReaddress hands a backup to another mesh, whose key opens it then, and the old one does not.
func TestReaddress(t *testing.T) {
	mine, other := newKEK(t, 1), newKEK(t, 2)
	whole := small(t, mine)
	r, err := Readdress(bytes.NewReader(whole), mine, other.Address())
	if err != nil {
		t.Fatal(err)
	}
	handed, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want, _, err := read(bytes.NewReader(whole), mine)
	if err != nil {
		t.Fatal(err)
	}
	got, br, err := read(bytes.NewReader(handed), other)
	if err != nil || !reflect.DeepEqual(got, want) || br.Summary().Key != other.String() {
		t.Errorf("%v, key %s\ngot  %.300v\nwant %.300v", err, br.Summary().Key, got, want)
	}
	if _, err := br.Rewrap(other, &got[0].ns); err != nil {
		t.Errorf("its data keys: %v", err)
	}
	if _, _, err := read(bytes.NewReader(handed), mine); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("with the old key: %v", err)
	}
	if s, err := Check(bytes.NewReader(handed)); err != nil || s.Key != other.String() {
		t.Errorf("checked: %+v, %v", s, err)
	}
	if _, err := Readdress(bytes.NewReader(whole), other, mine.Address()); !errors.Is(err, seal.ErrWrongKey) {
		t.Errorf("without the key: %v", err)
	}
	for _, at := range places(t, handed) {
		bad := bytes.Clone(handed)
		bad[at] ^= 1 << (at % 8)
		if keyed, keyless := refused(t, fmt.Sprint("byte ", at), bad, other); keyed == nil || keyless == nil {
			t.Errorf("byte %d: %v, %v", at, keyed, keyless)
		}
	}
}

// sealed builds a backup with any records in it, as only somebody with the key could.
func sealed(t testing.TB, kek *seal.KEK, records ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, testHeader, kek)
	for _, r := range records {
		err = errors.Join(err, w.add(r))
	}
	err = errors.Join(err, w.flush(true))
	end := binary.BigEndian.AppendUint64([]byte{markEnd}, w.parts)
	end = binary.BigEndian.AppendUint64(end, w.bytes)
	if err != nil {
		t.Fatal(err)
	}
	return append(b.Bytes(), appendSum(end, end)...)
}

// TestRecordsOutOfOrder: what is sealed well and makes no sense is refused too, so that a restore never stages it.
func TestRecordsOutOfOrder(t *testing.T) {
	kek := newKEK(t, 1)
	ns := func(b byte, title string) []byte { return appendNamespace(nil, &kv.Namespace{ID: id(b), Title: title}) }
	key := func(name string, it kv.Item) []byte { return appendKey(nil, name, &it) }
	totals := func(t Totals) []byte { return appendTotals(nil, &t) }
	large := kv.Item{Size: 70_000, Blob: id(1)}
	one := Totals{Namespaces: 1, Keys: 1, Bytes: 1}
	if _, _, err := read(bytes.NewReader(sealed(t, kek, ns(1, "x"), key("k", kv.Item{}), totals(one))), kek); err != nil {
		t.Fatalf("what is in order: %v", err)
	}
	for name, records := range map[string][][]byte{
		"no totals":                 {ns(1, "x"), key("k", kv.Item{})},
		"totals that do not fit":    {ns(1, "x"), key("k", kv.Item{}), totals(Totals{Namespaces: 1})},
		"totals twice":              {ns(1, "x"), key("k", kv.Item{}), totals(one), totals(one)},
		"records behind the totals": {totals(Totals{}), ns(1, "x")},
		"a key without a namespace": {key("k", kv.Item{}), totals(Totals{Keys: 1, Bytes: 1})},
		"namespaces in disorder":    {ns(2, "x"), ns(1, "y"), totals(Totals{Namespaces: 2})},
		"a namespace twice":         {ns(1, "x"), ns(1, "x"), totals(Totals{Namespaces: 2})},
		"a title that is an id":     {ns(1, kv.NamespaceID(id(3)).String()), totals(Totals{Namespaces: 1})},
		"keys in disorder":          {ns(1, "x"), key("b", kv.Item{}), key("a", kv.Item{}), totals(Totals{Namespaces: 1, Keys: 2, Bytes: 2})},
		"a key twice":               {ns(1, "x"), key("b", kv.Item{}), key("b", kv.Item{}), totals(Totals{Namespaces: 1, Keys: 2, Bytes: 2})},
		"a key that is none":        {ns(1, "x"), key("..", kv.Item{}), totals(Totals{Namespaces: 1, Keys: 1, Bytes: 2})},
		"a revision of the future":  {ns(1, "x"), key("k", kv.Item{Revision: 1001}), totals(one)},
		"a size that is too large":  {ns(1, "x"), key("k", kv.Item{Size: kv.MaxValueBytes + 1}), totals(one)},
		"a negative expiry":         {ns(1, "x"), key("k", kv.Item{Expiry: -1}), totals(one)},
		"data without a value":      {ns(1, "x"), appendData(nil, []byte("d")), totals(Totals{Namespaces: 1})},
		"too little data":           {ns(1, "x"), key("k", large), appendData(nil, []byte("d")), totals(Totals{})},
		"no data":                   {ns(1, "x"), key("k", large), appendData(nil, nil), totals(Totals{})},
		"a kind of the future":      {{9}, totals(Totals{})},
		"a record cut short":        {ns(1, "x")[:10]},
	} {
		if _, _, err := read(bytes.NewReader(sealed(t, kek, records...)), kek); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWriterRefuses what no reader would take.
func TestWriterRefuses(t *testing.T) {
	kek := newKEK(t, 1)
	spaces := content(t, kek, 70_000)
	begin := func() *Writer {
		w, err := NewWriter(io.Discard, testHeader, kek)
		if err == nil {
			err = w.Namespace(spaces[0].ns)
		}
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	big := spaces[0].keys[1]
	for name, do := range map[string]func(*Writer) error{
		"a key twice":                     func(w *Writer) error { return errors.Join(w.Key("k", &kv.Item{}), w.Key("k", &kv.Item{})) },
		"data of nothing":                 func(w *Writer) error { return w.Data([]byte("d")) },
		"too much data":                   func(w *Writer) error { return errors.Join(w.Key("k", &big.item), w.Data(make([]byte, 80_000))) },
		"a key amid data":                 func(w *Writer) error { return errors.Join(w.Key("k", &big.item), w.Key("l", &kv.Item{})) },
		"the end amid data":               func(w *Writer) error { return errors.Join(w.Key("k", &big.item), w.Close()) },
		"a data key of another mesh":      func(w *Writer) error { return w.Namespace(content(t, newKEK(t, 2), 1)[1].ns) },
		"anything after the end":          func(w *Writer) error { return errors.Join(w.Close(), w.Key("k", &kv.Item{})) },
		"the same namespace again, later": func(w *Writer) error { return errors.Join(w.Namespace(spaces[1].ns), w.Namespace(spaces[0].ns)) },
	} {
		w := begin()
		if err := do(w); err == nil {
			t.Errorf("%s: taken", name)
		}
		if err := w.Close(); err == nil {
			t.Errorf("%s: closed after it", name)
		}
	}
	w, err := NewWriter(&failing{after: 1}, testHeader, kek)
	if err = errors.Join(err, w.Close()); !errors.Is(err, errFull) {
		t.Errorf("a full disk: %v", err)
	}
}

var errFull = errors.New("no space left")

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// TestSourceErrors: why a source failed is not hidden behind an error of ours.
func TestSourceErrors(t *testing.T) {
	kek := newKEK(t, 1)
	whole := small(t, kek)
	for _, n := range places(t, whole) {
		r := io.MultiReader(bytes.NewReader(whole[:n]), iotest.ErrReader(errFull))
		if _, _, err := read(r, kek); !errors.Is(err, errFull) {
			t.Fatalf("after %d bytes: %v", n, err)
		}
	}
}

// FuzzRead: any bytes are refused in an orderly way, and without much memory. What the fuzzer can never do is make up a
// backup that is taken, so whatever is taken must be one that it was given.
func FuzzRead(f *testing.F) {
	kek := newKEK(f, 1)
	whole := small(f, kek)
	f.Add(whole)
	for _, p := range parts(f, whole) {
		f.Add(p)
	}
	r, err := Readdress(bytes.NewReader(whole), newKEK(f, 1), kek.Address())
	if err != nil {
		f.Fatal(err)
	}
	handed, err := io.ReadAll(r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(handed)
	f.Add(append([]byte(magic), 1, 0xff, 0xff))
	f.Add(append(bytes.Clone(parts(f, whole)[0]), 1, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, in []byte) {
		keyed, _ := refused(t, "fuzzed", in, kek)
		_, _, key := read(bytes.NewReader(in), kek)
		if (keyed == nil) != (key == nil) {
			t.Fatal("not the same twice")
		}
		_, _, _ = InspectEnd(in)
	})
}

// FuzzRecords: records that were sealed well are decoded without trust all the same.
func FuzzRecords(f *testing.F) {
	kek := newKEK(f, 1)
	f.Add(appendNamespace(nil, &kv.Namespace{ID: id(1), Title: "x"}))
	f.Add(appendKey(nil, "k", &kv.Item{Value: []byte("v")}))
	f.Add(appendData(nil, []byte("d")))
	f.Add(appendTotals(nil, &Totals{}))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > MaxPart {
			return
		}
		if _, _, err := read(bytes.NewReader(sealed(t, kek, in)), kek); err != nil && !errors.Is(err, ErrDamaged) {
			t.Fatalf("an error of no kind: %v", err)
		}
	})
}
