package seal

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"kvmesh/raftstore/kv"
)

// labelAddress separates the key pair of a KEK's address from everything else that is made of the key.
const labelAddress = "kvmesh/address/1"

// newReceiver makes the key pair of a KEK's address.
func newReceiver(key []byte) (hpke.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, key, nil, labelAddress, KEKBytes)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	pair, err := addressKEM().DeriveKeyPair(seed)
	if err != nil {
		return nil, fmt.Errorf("key-encryption key: %w", err)
	}
	return pair, nil
}

func addressKEM() hpke.KEM { return hpke.DHKEM(ecdh.X25519()) }

// Address is what others need to seal something that only holders of k can open (SealTo): version 1 | key id 4 | X25519
// public key 32. It is no secret.
func (k *KEK) Address() []byte {
	return append(binary.BigEndian.AppendUint32([]byte{version}, k.id), k.receiver.PublicKey().Bytes()...)
}

// AddressID is the id of the KEK that an address belongs to, as KEK.String shows it.
func AddressID(address []byte) (string, error) {
	id, err := parsePrefix(address, prefixBytes+32)
	if err != nil {
		return "", fmt.Errorf("address: %w", err)
	}
	return fmt.Sprintf("%08x", id), nil
}

// SealTo seals a small thing for the holders of the KEK whose address is given, with HPKE (RFC 9180: DHKEM X25519,
// HKDF-SHA256, AES-256-GCM). context must be given again to OpenHere. Anybody can seal: what comes out is secret, but who
// sent it is not known.
func SealTo(address []byte, context string, plaintext []byte) ([]byte, error) {
	if _, err := AddressID(address); err != nil {
		return nil, err
	}
	pub, err := addressKEM().NewPublicKey(address[prefixBytes:])
	if err != nil {
		return nil, fmt.Errorf("seal %s: address: %w: %w", context, ErrDamaged, err)
	}
	sealed, err := hpke.Seal(pub, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(context), plaintext)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", context, err)
	}
	return append(address[:prefixBytes:prefixBytes], sealed...), nil
}

// OpenHere opens what SealTo sealed for k's address with the same context. The errors are those of Unwrap.
func (k *KEK) OpenHere(context string, sealed []byte) ([]byte, error) {
	id, err := parsePrefix(sealed, prefixBytes)
	if err == nil && id != k.id {
		err = k.wrongKey(id)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", context, err)
	}
	plain, err := hpke.Open(k.receiver, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(context), sealed[prefixBytes:])
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", context, ErrDamaged)
	}
	return plain, nil
}

// Rewrap opens a data key of ns that k wrapped and wraps it for another KEK. The clear form never leaves this function. The
// errors are those of Unwrap.
func (k *KEK) Rewrap(to *KEK, ns kv.NamespaceID, wrapped []byte) ([]byte, error) {
	plain, err := k.open(wrapped, wrapData(ns))
	if err != nil {
		return nil, fmt.Errorf("data key of namespace %s: %w", ns, err)
	}
	again, err := to.aead.Encrypt(plain, wrapData(ns))
	if err != nil {
		return nil, fmt.Errorf("wrap data key: %w", err)
	}
	return again, nil
}
