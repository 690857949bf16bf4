package seal

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecurecleartextkeyset"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/secretdata"
	"github.com/tink-crypto/tink-go/v2/tink"

	"kvmesh/raftstore/kv"
)

// KEKBytes is the size of a key-encryption key.
const KEKBytes = 32

// saltBytes is the part of the nonce from which XAES-256-GCM derives a message's key, as C2SP specifies it.
const saltBytes = 12

// The associated data of what a KEK seals starts with one of these. Each ends with a zero byte, so neither is the
// beginning of the other.
const (
	labelWrap  = "kvmesh/wrap/1\x00"
	labelLocal = "kvmesh/local/1\x00"
)

// KEK is the key-encryption key of a mesh: it wraps the data keys of namespaces, and seals small files that a node keeps
// for itself. It is never stored. Safe for concurrent use.
type KEK struct {
	aead     tink.AEAD
	id       uint32
	receiver hpke.PrivateKey // of its address
}

// NewKEK makes the KEK of a 32-byte key, which it copies.
func NewKEK(key []byte) (*KEK, error) {
	if len(key) != KEKBytes {
		return nil, fmt.Errorf("key-encryption key: %d bytes, want %d", len(key), KEKBytes)
	}
	// The id tells keys apart and nothing about the key: it is cut from a hash of it under a label of its own.
	sum := sha256.Sum256(append([]byte("kvmesh/kek-id/1\x00"), key...))
	id := binary.BigEndian.Uint32(sum[:])

	params, err := xaesgcm.NewParameters(xaesgcm.VariantTink, saltBytes)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	k, err := xaesgcm.NewKey(secretdata.NewBytesFromData(key, insecuresecretdataaccess.Token{}), id, params)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	m := keyset.NewManager()
	if _, err := m.AddKey(k); err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	a, err := newAEAD(h)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	receiver, err := newReceiver(key)
	if err != nil {
		return nil, err
	}
	return &KEK{aead: a, id: id, receiver: receiver}, nil
}

// String is the id of the key, eight hex digits: what errors and status pages show. It reveals nothing of the key.
func (k *KEK) String() string { return fmt.Sprintf("%08x", k.id) }

// NewDataKey makes a fresh data key for one namespace and returns it wrapped: a Tink keyset with one XAES-256-GCM key,
// sealed by k with the namespace id as associated data.
func (k *KEK) NewDataKey(ns kv.NamespaceID) ([]byte, error) {
	params, err := xaesgcm.NewParameters(xaesgcm.VariantTink, saltBytes)
	if err != nil {
		return nil, fmt.Errorf("new data key: %w", err)
	}
	m := keyset.NewManager()
	id, err := m.AddNewKeyFromParameters(params)
	if err != nil {
		return nil, fmt.Errorf("new data key: %w", err)
	}
	if err := m.SetPrimary(id); err != nil {
		return nil, fmt.Errorf("new data key: %w", err)
	}
	h, err := m.Handle()
	if err != nil {
		return nil, fmt.Errorf("new data key: %w", err)
	}
	return k.wrap(ns, h)
}

// wrap seals a whole keyset. Tink could encrypt it as well, but its envelope puts a frame of its own around the ciphertext;
// this way a wrapped key looks like everything else that is sealed, and every byte of it is checked. The clear form never
// leaves this function.
func (k *KEK) wrap(ns kv.NamespaceID, h *keyset.Handle) ([]byte, error) {
	var plain bytes.Buffer
	if err := insecurecleartextkeyset.Write(h, keyset.NewBinaryWriter(&plain)); err != nil {
		return nil, fmt.Errorf("wrap data key: %w", err)
	}
	wrapped, err := k.aead.Encrypt(plain.Bytes(), wrapData(ns))
	if err != nil {
		return nil, fmt.Errorf("wrap data key: %w", err)
	}
	return wrapped, nil
}

// Unwrap opens a data key that NewDataKey made for ns. ErrWrongKey when another KEK wrapped it, ErrVersion when a newer
// release did, ErrDamaged when it was changed or belongs to another namespace.
func (k *KEK) Unwrap(ns kv.NamespaceID, wrapped []byte) (*DataKey, error) {
	plain, err := k.open(wrapped, wrapData(ns))
	if err != nil {
		return nil, fmt.Errorf("data key of namespace %s: %w", ns, err)
	}
	h, err := insecurecleartextkeyset.Read(keyset.NewBinaryReader(bytes.NewReader(plain)))
	if err != nil { // authenticated, so it is not damage but a kind of keyset that came later
		return nil, fmt.Errorf("data key of namespace %s: %w: %v", ns, ErrVersion, err)
	}
	d, err := newDataKey(h)
	if err != nil {
		return nil, fmt.Errorf("data key of namespace %s: %w", ns, err)
	}
	return d, nil
}

// Seal seals a small file that this mesh's nodes keep for themselves. context says what it is and must be given again to
// Open, so that one file cannot be put in the place of another.
func (k *KEK) Seal(context string, plaintext []byte) ([]byte, error) {
	sealed, err := k.aead.Encrypt(plaintext, []byte(labelLocal+context))
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", context, err)
	}
	return sealed, nil
}

// Open opens what Seal sealed with the same context. The errors are those of Unwrap.
func (k *KEK) Open(context string, sealed []byte) ([]byte, error) {
	plaintext, err := k.open(sealed, []byte(labelLocal+context))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", context, err)
	}
	return plaintext, nil
}

func (k *KEK) open(sealed, data []byte) ([]byte, error) {
	id, err := parsePrefix(sealed, Overhead)
	if err != nil {
		return nil, err
	}
	if id != k.id {
		return nil, k.wrongKey(id)
	}
	plaintext, err := k.aead.Decrypt(sealed, data)
	if err != nil {
		return nil, ErrDamaged // Tink says no more than that either
	}
	return plaintext, nil
}

func (k *KEK) wrongKey(id uint32) error {
	return fmt.Errorf("%w: it needs the key-encryption key %08x and this node has %08x; start the node with the mesh key (or key-encryption key) it was sealed with",
		ErrWrongKey, id, k.id)
}

func wrapData(ns kv.NamespaceID) []byte { return append([]byte(labelWrap), ns[:]...) }
