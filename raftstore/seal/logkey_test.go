package seal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
)

func newTestLogKey(t testing.TB) *LogKey {
	t.Helper()
	k := newKEK(t, 1)
	return must(k.OpenLogKey(must(k.NewLogKey())(t)))(t)
}

func TestEntry(t *testing.T) {
	l := newTestLogKey(t)
	for _, plain := range [][]byte{{}, []byte("x"), bytes.Repeat([]byte("entry"), 100_000)} {
		before := []byte("before")
		sealed := must(l.SealEntry(before, 7, 3, 1, plain))(t)
		if !bytes.HasPrefix(sealed, before) || len(sealed) != len(before)+len(plain)+Overhead {
			t.Fatalf("%d bytes became %d", len(plain), len(sealed))
		}
		sealed = sealed[len(before):]
		if got := must(l.OpenEntry(7, 3, 1, sealed))(t); !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d", len(plain), len(got))
		}
		for _, other := range [][3]uint64{{8, 3, 1}, {7, 4, 1}, {7, 3, 0}} {
			if _, err := l.OpenEntry(other[0], other[1], byte(other[2]), sealed); !errors.Is(err, ErrDamaged) {
				t.Errorf("opened as %v: error %v, want ErrDamaged", other, err)
			}
		}
	}
}

func TestEntryDamage(t *testing.T) {
	l := newTestLogKey(t)
	sealed := must(l.SealEntry(nil, 7, 3, 1, []byte("entry")))(t)
	flipEveryBit(sealed, func(at int, changed []byte) {
		if _, err := l.OpenEntry(7, 3, 1, changed); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: error %v, want %v", at, err, wantFor(at))
		}
	})
	for n := range sealed {
		if _, err := l.OpenEntry(7, 3, 1, sealed[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: error %v, want ErrDamaged", n, err)
		}
	}
	if _, err := newTestLogKey(t).OpenEntry(7, 3, 1, sealed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another key: error %v, want ErrWrongKey", err)
	}
	if _, err := newKEK(t, 2).OpenLogKey(must(newKEK(t, 1).NewLogKey())(t)); !errors.Is(err, ErrWrongKey) {
		t.Errorf("another KEK: error %v, want ErrWrongKey", err)
	}
}

// No nonce comes twice, over sessions and over starts, and old sessions stay readable.
func TestEntryNonces(t *testing.T) {
	k := newKEK(t, 1)
	wrapped := must(k.NewLogKey())(t)
	seen := map[string]bool{}
	var all [][]byte
	for start := range 3 * maxSalts {
		l := must(k.OpenLogKey(wrapped))(t)
		for i := range uint64(5) {
			if i == 3 {
				l.sealed = sessionSeals // the last one of this salt
			}
			sealed := must(l.SealEntry(nil, i, 1, 0, []byte("x")))(t)
			nonce := string(sealed[prefixBytes : prefixBytes+nonceBytes])
			if seen[nonce] {
				t.Fatalf("start %d, entry %d: a nonce comes twice", start, i)
			}
			seen[nonce] = true
			all = append(all, sealed)
		}
	}
	l := must(k.OpenLogKey(wrapped))(t)
	for i, sealed := range all {
		must(l.OpenEntry(uint64(i%5), 1, 0, sealed))(t)
	}
	if len(l.opened) > maxSalts {
		t.Errorf("%d derived keys are kept", len(l.opened))
	}
}

// An entry is XAES-256-GCM as everybody else has it.
func TestEntryIsXAES(t *testing.T) {
	key := bytes.Repeat([]byte{0x42}, logKeyBytes)
	l := must(newLogKey(key))(t)
	params := must(xaesgcm.NewParameters(xaesgcm.VariantTink, saltBytes))(t)
	k := must(xaesgcm.NewKey(secretdata.NewBytesFromData(key, insecuresecretdataaccess.Token{}), l.id, params))(t)
	m := keyset.NewManager()
	must(m.AddKey(k))(t)
	if err := m.SetPrimary(l.id); err != nil {
		t.Fatal(err)
	}
	tink := must(newAEAD(must(m.Handle())(t)))(t)
	data := entryData(9, 2, 5)
	for i := range 3 {
		want := fmt.Appendf(nil, "entry %d", i)
		sealed := must(l.SealEntry(nil, 9, 2, 5, want))(t)
		if got, err := tink.Decrypt(sealed, data[:]); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Tink opens %q as %q, %v", want, got, err)
		}
		theirs := must(tink.Encrypt(want, data[:]))(t)
		if got := must(l.OpenEntry(9, 2, 5, theirs))(t); !bytes.Equal(got, want) {
			t.Errorf("what Tink sealed opens as %q", got)
		}
	}
}

func BenchmarkEntry(b *testing.B) {
	for _, size := range []int{300, 64 << 10} {
		l, plain := newTestLogKey(b), make([]byte, size)
		sealed := must(l.SealEntry(nil, 1, 1, 0, plain))(b)
		b.Run(fmt.Sprintf("seal %d", size), func(b *testing.B) {
			buf := make([]byte, 0, len(sealed))
			b.ReportAllocs()
			for b.Loop() {
				must(l.SealEntry(buf[:0], 1, 1, 0, plain))(b)
			}
		})
		b.Run(fmt.Sprintf("open %d", size), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(l.OpenEntry(1, 1, 0, sealed))(b)
			}
		})
	}
}
