package seal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/tink-crypto/tink-go/v2/aead"
	"github.com/tink-crypto/tink-go/v2/keyset"

	"kvmesh/raftstore/kv"
)

func TestKEKSize(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33} {
		if _, err := NewKEK(make([]byte, n)); err == nil || !strings.Contains(err.Error(), "want 32") {
			t.Errorf("%d bytes: error %v", n, err)
		}
	}
	key := bytes.Repeat([]byte{7}, KEKBytes)
	k := must(NewKEK(key))(t)
	sealed := must(k.Seal("file", []byte("x")))(t)
	clear(key) // the KEK must have copied it
	if _, err := newKEK(t, 7).Open("file", sealed); err != nil {
		t.Errorf("the same key made elsewhere: %v", err)
	}
	if _, err := must(NewKEK(key))(t).Open("file", sealed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("error %v, want ErrWrongKey", err)
	}
}

func TestWrongKEKNamesBoth(t *testing.T) {
	ns, mine, other := kv.NewNamespaceID(), newKEK(t, 1), newKEK(t, 2)
	wrapped := must(mine.NewDataKey(ns))(t)
	_, err := other.Unwrap(ns, wrapped)
	if !errors.Is(err, ErrWrongKey) {
		t.Fatalf("error %v, want ErrWrongKey", err)
	}
	for _, part := range []string{mine.String(), other.String(), ns.String()} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %s", err, part)
		}
	}
}

func TestWrappedKeyDamage(t *testing.T) {
	k, ns := newKEK(t, 1), kv.NewNamespaceID()
	wrapped := must(k.NewDataKey(ns))(t)
	flipEveryBit(wrapped, func(at int, changed []byte) {
		if _, err := k.Unwrap(ns, changed); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: error %v, want %v", at, err, wantFor(at))
		}
	})
	for n := range wrapped {
		if _, err := k.Unwrap(ns, wrapped[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: error %v, want ErrDamaged", n, err)
		}
	}
	if _, err := k.Unwrap(kv.NewNamespaceID(), wrapped); !errors.Is(err, ErrDamaged) {
		t.Errorf("data key of another namespace: error %v, want ErrDamaged", err)
	}
}

func TestDataKeysAreFresh(t *testing.T) {
	k, ns, id := newKEK(t, 1), kv.NewNamespaceID(), kv.NewWriteID()
	a := must(k.Unwrap(ns, must(k.NewDataKey(ns))(t)))(t)
	b := must(k.Unwrap(ns, must(k.NewDataKey(ns))(t)))(t)
	sealed := must(a.Seal(FieldValue, ns, "key", id, []byte("v")))(t)
	if _, err := b.Open(FieldValue, ns, "key", id, sealed); err == nil {
		t.Error("two data keys of one namespace are the same")
	}
}

// A keyset of a kind that came later is authentic but unknown; it must be told apart from damage.
func TestUnknownKindOfDataKey(t *testing.T) {
	k, ns := newKEK(t, 1), kv.NewNamespaceID()
	h := must(keyset.NewHandle(aead.AES256GCMKeyTemplate()))(t)
	if _, err := k.Unwrap(ns, must(k.wrap(ns, h))(t)); !errors.Is(err, ErrVersion) {
		t.Errorf("AES-GCM keyset: error %v, want ErrVersion", err)
	}
	h = must(keyset.NewHandle(aead.XAES256GCM192BitNonceNoPrefixKeyTemplate()))(t)
	if _, err := k.Unwrap(ns, must(k.wrap(ns, h))(t)); !errors.Is(err, ErrVersion) {
		t.Errorf("keyset without prefix: error %v, want ErrVersion", err)
	}
	junk := must(k.aead.Encrypt([]byte("not a keyset"), wrapData(ns)))(t)
	if _, err := k.Unwrap(ns, junk); !errors.Is(err, ErrVersion) {
		t.Errorf("no keyset: error %v, want ErrVersion", err)
	}
}

func TestLocalFiles(t *testing.T) {
	k, ns := newKEK(t, 1), kv.NewNamespaceID()
	sealed := must(k.Seal("control", []byte("state")))(t)
	if got := must(k.Open("control", sealed))(t); string(got) != "state" {
		t.Errorf("opened %q", got)
	}
	if _, err := k.Open("contro1", sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("other context: error %v, want ErrDamaged", err)
	}
	if _, err := newKEK(t, 2).Open("control", sealed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("other KEK: error %v, want ErrWrongKey", err)
	}
	flipEveryBit(sealed, func(at int, changed []byte) {
		if _, err := k.Open("control", changed); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: error %v, want %v", at, err, wantFor(at))
		}
	})
	// A wrapped key is no local file, whatever the context, and the other way round.
	wrapped := must(k.NewDataKey(ns))(t)
	for _, context := range []string{string(ns[:]), string(wrapData(ns)), ""} {
		if _, err := k.Open(context, wrapped); !errors.Is(err, ErrDamaged) {
			t.Errorf("wrapped key as local file %q: error %v, want ErrDamaged", context, err)
		}
	}
	if _, err := k.Unwrap(ns, must(k.Seal(string(ns[:]), []byte("x")))(t)); !errors.Is(err, ErrDamaged) {
		t.Errorf("local file as wrapped key: error %v, want ErrDamaged", err)
	}
}

// What an earlier release sealed must open for ever: these bytes lie on disks and in backups.
func TestGolden(t *testing.T) {
	unhex := func(s string) []byte { return must(hex.DecodeString(s))(t) }
	k, ns, id := newKEK(t, 0x42), kv.NamespaceID{1, 2, 3}, kv.WriteID{4, 5, 6}
	d, err := k.Unwrap(ns, unhex(goldenWrapped))
	if err != nil {
		t.Fatal(err)
	}
	if got := must(k.Open("control", unhex(goldenLocal)))(t); string(got) != "local" {
		t.Errorf("local file opened to %q", got)
	}
	if got := must(d.Open(FieldValue, ns, "ключ", id, unhex(goldenValue)))(t); string(got) != "value" {
		t.Errorf("value opened to %q", got)
	}
	if got := must(openStream(d, ns, "ключ", id, unhex(goldenBlob), 4, 0))(t); string(got) != "blob" {
		t.Errorf("blob opened to %q", got)
	}
}

const (
	goldenWrapped = "01fba7b5c12e68c1d1c3281b28433f0b8e0c4637e732c41f06163a0f40ccd15dd7d4dead18ab84a1049d9ec7afc1d83d9691babcd745062fa61acbf5396d774598aae9ee8aca2628932c8f34729f8781c9ebf11d81b0926488b9850b1d043e57d408f8702cfdcae99cdc15c24644ee1c82fc61965cd1fc9f688b65dd67ebcc70c6c85a49e672bd542723ffc1bcf541d211ff4c1bcf61f5b329ce2bad67bd"
	goldenLocal   = "01fba7b5c123d6a1453aa8a13bd21a419854cc0c79e5f5892b72ac4d8536e028e0456a60a4e316344f10dc5bba9c334491cc"
	goldenValue   = "01fb4da9b3758de055acd4d90c771e055f8d9baa303d12b217f7e7dcde2ada771ee0da70277fd9e07591cc7842827032eee1"
	goldenBlob    = "01fb4da9b328bb571696ba1aa41a7ae4571f4092ffe02a76225f791e24dd1f5d143be20ad3ce3f030ba8ddf9d7674492ca13cd3f284ac1c7f385424c619594329a"
)
