package seal

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"kvmesh/raftstore/kv"
)

func newKEK(t testing.TB, fill byte) *KEK {
	t.Helper()
	k, err := NewKEK(bytes.Repeat([]byte{fill}, KEKBytes))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newKey(t testing.TB, ns kv.NamespaceID) *DataKey {
	t.Helper()
	k := newKEK(t, 1)
	wrapped, err := k.NewDataKey(ns)
	if err != nil {
		t.Fatal(err)
	}
	d, err := k.Unwrap(ns, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// flipEveryBit calls fn with b changed in one bit, for each of its bits.
func flipEveryBit(b []byte, fn func(at int, changed []byte)) {
	for i := range 8 * len(b) {
		c := bytes.Clone(b)
		c[i/8] ^= 1 << (i % 8)
		fn(i/8, c)
	}
}

// wantFor is the error that a change of the byte at a position of anything sealed must give.
func wantFor(at int) error {
	switch {
	case at == 0:
		return ErrVersion
	case at < prefixBytes:
		return ErrWrongKey
	}
	return ErrDamaged
}

func TestSealOpen(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	for _, size := range []int{0, 1, 300, kv.MaxInlineValueBytes} {
		plain := bytes.Repeat([]byte("v"), size)
		sealed := must(d.Seal(FieldValue, ns, "key", id, plain))(t)
		if len(sealed) != size+Overhead {
			t.Errorf("%d bytes are sealed in %d, want %d", size, len(sealed), size+Overhead)
		}
		if size > 8 && bytes.Contains(sealed, plain[:8]) {
			t.Error("the plaintext is visible")
		}
		again := must(d.Seal(FieldValue, ns, "key", id, plain))(t)
		if bytes.Equal(sealed, again) {
			t.Error("two seals of the same value are equal: the nonce is not fresh")
		}
		before := bytes.Clone(sealed)
		got := must(d.Open(FieldValue, ns, "key", id, sealed))(t)
		if got == nil || !bytes.Equal(got, plain) {
			t.Errorf("size %d: opened to something else (nil: %t)", size, got == nil)
		}
		if !bytes.Equal(sealed, before) {
			t.Error("Open changed its argument")
		}
	}
}

func TestEachPieceOfAssociatedDataMatters(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	sealed := must(d.Seal(FieldValue, ns, "key", id, []byte("value")))(t)

	cases := map[string]struct {
		f   Field
		ns  kv.NamespaceID
		key string
		id  kv.WriteID
	}{
		"field":     {FieldMetadata, ns, "key", id},
		"namespace": {FieldValue, kv.NewNamespaceID(), "key", id},
		"key":       {FieldValue, ns, "kez", id},
		"no key":    {FieldValue, ns, "", id},
		"longer":    {FieldValue, ns, "key\x00", id},
		"write id":  {FieldValue, ns, "key", kv.NewWriteID()},
	}
	for name, c := range cases {
		if _, err := d.Open(c.f, c.ns, c.key, c.id, sealed); !errors.Is(err, ErrDamaged) {
			t.Errorf("other %s: error %v, want ErrDamaged", name, err)
		}
	}
	if _, err := newKey(t, ns).Open(FieldValue, ns, "key", id, sealed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("other data key: error %v, want ErrWrongKey", err)
	}

	// Two keys of one write swap their values.
	other := must(d.Seal(FieldValue, ns, "other", id, []byte("value")))(t)
	for key, stolen := range map[string][]byte{"key": other, "other": sealed} {
		if _, err := d.Open(FieldValue, ns, key, id, stolen); !errors.Is(err, ErrDamaged) {
			t.Errorf("swapped value of %q: error %v, want ErrDamaged", key, err)
		}
	}
}

func TestAssociatedDataIsUnambiguous(t *testing.T) {
	seen := map[string]string{}
	for _, f := range []Field{FieldValue, FieldMetadata, FieldBlob} {
		for _, ns := range []kv.NamespaceID{{}, {15: 'a'}} {
			for _, id := range []kv.WriteID{{}, {0: 'a'}, {15: 'a'}} {
				for _, key := range []string{"", "a", "aa", "\x00", strings.Repeat("\x00", 4), strings.Repeat("k", 512)} {
					data := appendData(nil, f, ns, key, id)
					if len(data) != dataBytes(key) {
						t.Errorf("dataBytes(%d-byte key) = %d, appended %d", len(key), dataBytes(key), len(data))
					}
					tuple := fmt.Sprintf("%s %s %x %q", f, ns, id, key)
					if was, ok := seen[string(data)]; ok {
						t.Errorf("%s and %s have the same associated data", was, tuple)
					}
					seen[string(data)] = tuple
				}
			}
		}
	}
}

func TestAnyDamageIsAnError(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	sealed := must(d.Seal(FieldMetadata, ns, "key", id, []byte(`{"a":1}`)))(t)

	flipEveryBit(sealed, func(at int, changed []byte) {
		if _, err := d.Open(FieldMetadata, ns, "key", id, changed); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: error %v, want %v", at, err, wantFor(at))
		}
	})
	for n := range sealed {
		if _, err := d.Open(FieldMetadata, ns, "key", id, sealed[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: error %v, want ErrDamaged", n, err)
		}
	}
	if _, err := d.Open(FieldMetadata, ns, "key", id, append(bytes.Clone(sealed), 0)); !errors.Is(err, ErrDamaged) {
		t.Errorf("one byte more: error %v, want ErrDamaged", err)
	}
}

func TestDataKeyIsSafeForConcurrentUse(t *testing.T) {
	ns := kv.NewNamespaceID()
	d := newKey(t, ns)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				key, id, plain := fmt.Sprint(g, i), kv.NewWriteID(), bytes.Repeat([]byte{byte(i)}, g)
				sealed, err := d.Seal(FieldValue, ns, key, id, plain)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := d.Open(FieldValue, ns, key, id, sealed); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("opened %x, %v; want %x", got, err, plain)
				}
				if got := sealStream(t, d, ns, key, id, plain); int64(len(got)) != SealedSize(int64(len(plain))) {
					t.Errorf("stream of %d bytes", len(got))
				}
			}
		})
	}
	wg.Wait()
}

// A keyset that was rotated seals with its new key and still opens what the old one sealed.
func TestRotatedKeyset(t *testing.T) {
	k, ns, id := newKEK(t, 1), kv.NewNamespaceID(), kv.NewWriteID()
	m := keyset.NewManager()
	first := must(m.Add(aead.XAES256GCM192BitNonceKeyTemplate()))(t)
	rewrap := func(primary uint32) *DataKey {
		if err := m.SetPrimary(primary); err != nil {
			t.Fatal(err)
		}
		wrapped := must(k.wrap(ns, must(m.Handle())(t)))(t)
		return must(k.Unwrap(ns, wrapped))(t)
	}
	old := rewrap(first)
	second := must(m.Add(aead.XAES256GCM192BitNonceKeyTemplate()))(t)
	rotated := rewrap(second)

	value := must(old.Seal(FieldValue, ns, "key", id, []byte("before")))(t)
	if got := must(rotated.Open(FieldValue, ns, "key", id, value))(t); string(got) != "before" {
		t.Errorf("opened %q", got)
	}
	blob := sealStream(t, old, ns, "key", id, []byte("before"))
	if got := must(openStream(rotated, ns, "key", id, blob, 6, 0))(t); string(got) != "before" {
		t.Errorf("opened %q", got)
	}
	value = must(rotated.Seal(FieldValue, ns, "key", id, []byte("after")))(t)
	if _, err := old.Open(FieldValue, ns, "key", id, value); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the rotated keyset still seals with the old key: %v", err)
	}
}

func BenchmarkSeal300(b *testing.B) {
	ns, id, plain := kv.NewNamespaceID(), kv.NewWriteID(), make([]byte, 300)
	d := newKey(b, ns)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Seal(FieldValue, ns, "some/key", id, plain); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen300(b *testing.B) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(b, ns)
	sealed := must(d.Seal(FieldValue, ns, "some/key", id, make([]byte, 300)))(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Open(FieldValue, ns, "some/key", id, sealed); err != nil {
			b.Fatal(err)
		}
	}
}
