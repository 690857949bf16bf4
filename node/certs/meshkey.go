package certs

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"strings"
)

// HKDF labels. Each derived key has its own, so that knowing one tells nothing about another.
const (
	labelGossip = "kvmesh/gossip/1"
	labelLabel  = "kvmesh/label/1"
	labelCA     = "kvmesh/ca/1"
	labelKEK    = "kvmesh/kek/1"
)

// keyFileLimit bounds what is read from a key file: a key has 65 bytes with its newline, anything longer is another file.
const keyFileLimit = 4 << 10

const redacted = "mesh-key(redacted)"

// MeshKey is the secret that all nodes of a mesh share. However it is printed, logged or marshalled, it shows nothing of
// itself; Encode is the one way to write it down.
type MeshKey [32]byte

// NewMeshKey returns a random key.
func NewMeshKey() MeshKey {
	var k MeshKey
	_, _ = rand.Read(k[:]) // never fails: it ends the process when the system has no randomness
	return k
}

// ParseMeshKey reads the 64 hex digits that Encode wrote, with or without white space around them. Its errors never
// contain the input.
func ParseMeshKey(text string) (MeshKey, error) {
	var k MeshKey
	text = strings.TrimSpace(text)
	if len(text) != 2*len(k) {
		return k, fmt.Errorf("a mesh key is %d hex digits and a newline, this has %d characters; "+
			"make one with `kvmesh mesh-key new`", 2*len(k), len(text))
	}
	if _, err := hex.Decode(k[:], []byte(text)); err != nil {
		return MeshKey{}, fmt.Errorf("a mesh key is %d hex digits and a newline, this has other characters; "+
			"make one with `kvmesh mesh-key new`", 2*len(k))
	}
	if k == (MeshKey{}) {
		return k, errors.New("the mesh key is all zeros; make one with `kvmesh mesh-key new`")
	}
	return k, nil
}

// ReadMeshKeyFile reads a key file. The warning is not empty when users other than the owner may read the file; the key
// is good all the same, because containers and secret stores often leave the operator no choice.
func ReadMeshKeyFile(path string) (key MeshKey, warning string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; correct --mesh-key, or make a key for a new mesh with \"kvmesh mesh-key new --out %s\"", err, path)
	}
	if err != nil {
		return key, "", fmt.Errorf("mesh key: %w", err)
	}
	defer func() { _ = f.Close() }() // it was only read
	st, err := f.Stat()
	if err != nil {
		return key, "", fmt.Errorf("mesh key: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, keyFileLimit))
	if err != nil {
		return key, "", fmt.Errorf("mesh key: %w", err)
	}
	if key, err = ParseMeshKey(string(text)); err != nil {
		return key, "", fmt.Errorf("mesh key file %s: %w", path, err)
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		warning = fmt.Sprintf("the mesh key file %s has mode %04o, so that other users can get at the key; run: chmod 600 %s",
			path, mode, path)
	}
	return key, warning, nil
}

// Encode is the secret itself: 64 hex digits, without a newline.
func (k MeshKey) Encode() string { return hex.EncodeToString(k[:]) }

// String hides the secret.
func (k MeshKey) String() string { return redacted }

// Format hides the secret from every verb, %x and %#v included.
func (k MeshKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue hides the secret from slog.
func (k MeshKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the secret from JSON and the like.
func (k MeshKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// GossipKey is the AES-256 key of the gossip keyring: 32 bytes.
func (k MeshKey) GossipKey() []byte { return k.derive(labelGossip, 32) }

// GossipLabel is the label that gossip packets carry in clear, so that the packets of two meshes are told apart before
// anything is decrypted: 32 hex digits, which tell nothing about the key.
func (k MeshKey) GossipLabel() string { return hex.EncodeToString(k.derive(labelLabel, 16)) }

// KEK is the key-encryption key that wraps the namespaces' data keys: 32 bytes.
func (k MeshKey) KEK() []byte { return k.derive(labelKEK, 32) }

// derive is HKDF-SHA256 (RFC 5869) without a salt: the key has full entropy already.
func (k MeshKey) derive(label string, size int) []byte {
	out, err := hkdf.Key(sha256.New, k[:], nil, label, size)
	if err != nil { // only for more than 255 × 32 bytes, or a key that FIPS 140 finds too short
		panic("certs: " + err.Error())
	}
	return out
}
