package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// openMetadata opens sealed metadata; nil stays nil.
func openMetadata(k *seal.DataKey, ns kv.NamespaceID, key string, id kv.WriteID, sealed []byte) ([]byte, error) {
	if sealed == nil {
		return nil, nil
	}
	plain, err := k.Open(seal.FieldMetadata, ns, key, id, sealed)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	return plain, nil
}

// openValue opens a sealed value that is in memory as a whole: an inline one, or a blob.
func openValue(k *seal.DataKey, ns kv.NamespaceID, key string, id kv.WriteID, blob kv.BlobID, size int64, sealed []byte) ([]byte, error) {
	if blob.IsZero() {
		plain, err := k.Open(seal.FieldValue, ns, key, id, sealed)
		if err != nil {
			return nil, fmt.Errorf("value: %w", err)
		}
		return plain, nil
	}
	r, err := k.OpenReader(ns, key, id, int64(len(sealed)), size, 0, func(off int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(sealed[min(off, int64(len(sealed))):])), nil
	})
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	plain := make([]byte, size)
	_, err = io.ReadFull(r, plain)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("value: %w", err)
	}
	return plain, nil
}

// asKVError finds the *kv.Error in err's chain, nil when there is none.
func asKVError(err error) *kv.Error {
	var e *kv.Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}
