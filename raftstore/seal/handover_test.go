package seal

import (
	"bytes"
	"errors"
	"testing"

	"kvmesh/raftstore/kv"
)

func TestSealTo(t *testing.T) {
	mine, other := newKEK(t, 1), newKEK(t, 2)
	secret := []byte("a key of thirty-two bytes, or so")
	sealed := must(SealTo(mine.Address(), "backup", secret))(t)
	if got := must(newKEK(t, 1).OpenHere("backup", sealed))(t); !bytes.Equal(got, secret) {
		t.Errorf("got %q", got)
	}
	if again := must(SealTo(mine.Address(), "backup", secret))(t); bytes.Equal(again, sealed) {
		t.Error("the same bytes twice")
	}
	if bytes.Contains(sealed, secret[:8]) {
		t.Error("it is in clear")
	}
	if id := must(AddressID(mine.Address()))(t); id != mine.String() {
		t.Errorf("address of %s, key %s", id, mine)
	}
	if _, err := other.OpenHere("backup", sealed); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := mine.OpenHere("restore", sealed); !errors.Is(err, ErrDamaged) {
		t.Errorf("with another context: %v", err)
	}
	flipEveryBit(sealed, func(at int, changed []byte) {
		if _, err := mine.OpenHere("backup", changed); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: %v, want %v", at, err, wantFor(at))
		}
	})
	for n := range sealed {
		if _, err := mine.OpenHere("backup", sealed[:n]); !errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for name, address := range map[string][]byte{
		"none": nil, "short": mine.Address()[:20], "long": append(mine.Address(), 0), "low order": append(mine.Address()[:5:5], make([]byte, 32)...),
	} {
		if _, err := SealTo(address, "backup", secret); err == nil {
			t.Errorf("address %s was taken", name)
		}
	}
}

func TestRewrap(t *testing.T) {
	from, to, ns, id := newKEK(t, 1), newKEK(t, 2), kv.NewNamespaceID(), kv.NewWriteID()
	wrapped := must(from.NewDataKey(ns))(t)
	sealed := must(must(from.Unwrap(ns, wrapped))(t).Seal(FieldValue, ns, "key", id, []byte("v")))(t)
	again := must(from.Rewrap(to, ns, wrapped))(t)
	if got := must(must(to.Unwrap(ns, again))(t).Open(FieldValue, ns, "key", id, sealed))(t); string(got) != "v" {
		t.Errorf("got %q", got)
	}
	if _, err := from.Unwrap(ns, again); !errors.Is(err, ErrWrongKey) {
		t.Errorf("the first key still opens it: %v", err)
	}
	if _, err := to.Rewrap(from, ns, wrapped); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with the wrong key: %v", err)
	}
	if _, err := from.Rewrap(to, kv.NewNamespaceID(), wrapped); !errors.Is(err, ErrDamaged) {
		t.Errorf("of another namespace: %v", err)
	}
}
