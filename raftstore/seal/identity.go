//go:build sealidentity

package seal

import (
	"bytes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"github.com/tink-crypto/tink-go/v2/keyset"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// This file takes the place of cipher.go in the one build that must not seal: it shows that the test which looks for
// plaintext on disk would find it. Sizes and frames are those of the real ciphers, the bytes between them are in clear.
// Nothing at run time leads here.

// newAEAD returns the identity under the keyset's key id.
func newAEAD(h *keyset.Handle) (tink.AEAD, error) {
	e, err := h.Primary()
	if err != nil {
		return nil, fmt.Errorf("keyset: %w", err)
	}
	return identityAEAD{e.KeyID()}, nil
}

type identityAEAD struct{ keyID uint32 }

func (a identityAEAD) Encrypt(plaintext, _ []byte) ([]byte, error) {
	out := make([]byte, 0, len(plaintext)+Overhead)
	out = binary.BigEndian.AppendUint32(append(out, version), a.keyID)
	out = append(out, make([]byte, nonceBytes)...)
	out = append(out, plaintext...)
	return append(out, make([]byte, tagBytes)...), nil
}

func (a identityAEAD) Decrypt(sealed, _ []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrDamaged
	}
	return append([]byte{}, sealed[prefixBytes+nonceBytes:len(sealed)-tagBytes]...), nil
}

// newGCM returns the identity in the frame of a segment.
func newGCM([]byte) (cipher.AEAD, error) { return identityGCM{}, nil }

type identityGCM struct{}

func (identityGCM) NonceSize() int { return noncePrefixBytes + 4 + 1 }

func (identityGCM) Overhead() int { return tagBytes }

func (identityGCM) Seal(dst, _, plaintext, _ []byte) []byte {
	return append(append(dst, plaintext...), make([]byte, tagBytes)...)
}

func (identityGCM) Open(dst, _, sealed, _ []byte) ([]byte, error) {
	plaintext, ok := bytes.CutSuffix(sealed, make([]byte, tagBytes))
	if !ok {
		return nil, ErrDamaged
	}
	return append(dst, plaintext...), nil
}
