package seal

import (
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/aead/xaesgcm"
	"github.com/tink-crypto/tink-go/v2/insecuresecretdataaccess"
	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"

	"kvmesh/raftstore/kv"
)

// streamKeyBytes is the size of the key a stream's own key is derived from, and of that key too.
const streamKeyBytes = 32

// labelStream separates the streams' key from the XAES-256-GCM key it is derived from.
const labelStream = "kvmesh/blob-key/1"

// DataKey seals and opens what belongs to one namespace. It may hold several keys: the primary one seals, all of them
// open, so that keys can be replaced without sealing everything anew. Safe for concurrent use.
type DataKey struct {
	aead    tink.AEAD
	primary uint32
	streams map[uint32][]byte // by key id; read only after newDataKey
}

func newDataKey(h *keyset.Handle) (*DataKey, error) {
	a, err := newAEAD(h)
	if err != nil {
		return nil, err
	}
	primary, err := h.Primary()
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	d := &DataKey{aead: a, primary: primary.KeyID(), streams: make(map[uint32][]byte, h.Len())}
	for i := range h.Len() {
		e, err := h.Entry(i)
		if err != nil {
			return nil, fmt.Errorf("keyset: %w", err)
		}
		if e.KeyStatus() != keyset.Enabled {
			continue
		}
		k, ok := e.Key().(*xaesgcm.Key)
		if !ok || len(k.OutputPrefix()) != prefixBytes {
			return nil, fmt.Errorf("%w: key %08x is a %T without our prefix", ErrVersion, e.KeyID(), e.Key())
		}
		stream, err := hkdf.Key(sha256.New, k.KeyBytes().Data(insecuresecretdataaccess.Token{}), nil, labelStream, streamKeyBytes)
		if err != nil {
			return nil, fmt.Errorf("derive stream key: %w", err)
		}
		d.streams[e.KeyID()] = stream
	}
	return d, nil
}

// String is the id of the key that seals, eight hex digits.
func (d *DataKey) String() string { return fmt.Sprintf("%08x", d.primary) }

// Seal seals one field of one write. The result is Overhead bytes longer than plaintext, which may be empty.
func (d *DataKey) Seal(f Field, ns kv.NamespaceID, key string, id kv.WriteID, plaintext []byte) ([]byte, error) {
	data := appendData(make([]byte, 0, dataBytes(key)), f, ns, key, id)
	sealed, err := d.aead.Encrypt(plaintext, data)
	if err != nil {
		return nil, fmt.Errorf("seal %s in namespace %s: %w", f, ns, err)
	}
	return sealed, nil
}

// Open opens what Seal sealed for the same field, namespace, key and write. It does not change sealed, and what it returns
// is never nil. ErrWrongKey, ErrVersion or ErrDamaged.
func (d *DataKey) Open(f Field, ns kv.NamespaceID, key string, id kv.WriteID, sealed []byte) ([]byte, error) {
	keyID, err := parsePrefix(sealed, Overhead)
	if err != nil {
		return nil, fmt.Errorf("open %s in namespace %s: %w", f, ns, err)
	}
	if _, ok := d.streams[keyID]; !ok {
		return nil, fmt.Errorf("open %s in namespace %s: %w", f, ns, d.wrongKey(keyID))
	}
	data := appendData(make([]byte, 0, dataBytes(key)), f, ns, key, id)
	plaintext, err := d.aead.Decrypt(sealed, data)
	if err != nil {
		return nil, fmt.Errorf("open %s in namespace %s: %w", f, ns, ErrDamaged)
	}
	return plaintext, nil
}

func (d *DataKey) wrongKey(keyID uint32) error {
	return fmt.Errorf("%w: it needs the data key %08x and the namespace has %08x", ErrWrongKey, keyID, d.primary)
}
