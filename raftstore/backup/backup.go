// Package backup is the format of a backup: the whole content of a mesh at one revision, as one stream that is written and
// read from front to back in constant memory. It knows nothing of how the content is stored; whoever makes a backup walks
// the state, whoever restores one fills a state.
//
//	head    magic "kvmesh-backup\n" | version 1 | length 2 | header | xxhash64
//	lock    kind 1 | length 2 | the backup's key, sealed | xxhash64
//	part    1, or 2 for the last | number 8, from 1 | length 4 | sealed records | xxhash64
//	…
//	end     0 | number of parts 8 | their bytes 8 | xxhash64
//
// Numbers are big endian; a checksum covers its own frame. The checksums let anybody find damage, without a key. What
// proves that nothing was changed is the seal: every part (at most MaxPart bytes of records) is sealed under a key made for
// this backup alone, with the digest of the header, its number and whether it is the last as associated data, so that
// parts cannot be changed, swapped, dropped, added, or taken from another backup, and a backup cannot be cut. The header is
// in clear, because one has to see what a file is before one looks for its key; it is proven with the first part.
//
// That key is the one thing that is sealed for a mesh: by its key-encryption key, or for its address (seal.SealTo). The
// namespaces' data keys are wrapped by the backup's key and not by the mesh's, so a backup is handed to another mesh by
// sealing those 32 bytes anew (Readdress), however long it is. Values, metadata and large values are what the store holds,
// sealed under the data keys; names of keys and titles are hidden by the seal of the parts.
package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cespare/xxhash/v2"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

const (
	magic   = "kvmesh-backup\n"
	version = 1

	// MaxPart is the largest part, in bytes of records before they are sealed.
	MaxPart = 1 << 20
	// maxHeader and maxLock bound what is read on the word of a length. A header has about 120 bytes, a lock about 85.
	maxHeader = 1 << 10
	maxLock   = 1 << 10
	// maxVersionText bounds Header.Version.
	maxVersionText = 64

	sumBytes = 8

	markEnd  = 0
	markPart = 1
	markLast = 2

	partHead = 1 + 8 + 4
	// EndBytes is the length of the end: who has only that much of a file can tell whether it is whole.
	EndBytes = 1 + 8 + 8 + sumBytes

	lockKEK     = 1 // sealed by a key-encryption key
	lockAddress = 2 // sealed for an address
)

// What reading a backup can fail with, beside the errors of its source. A wrong key is seal.ErrWrongKey.
var (
	// ErrNotBackup: it is something else.
	ErrNotBackup = errors.New("this is not a backup of kvmesh")
	// ErrVersion: another release made it.
	ErrVersion = errors.New("the backup was made by another version of kvmesh")
	// ErrCut: the end is missing. It wraps io.ErrUnexpectedEOF.
	ErrCut = fmt.Errorf("the backup is cut short: %w", io.ErrUnexpectedEOF)
	// ErrDamaged: something was changed.
	ErrDamaged = errors.New("the backup is damaged")
)

// Header says what a backup is.
type Header struct {
	ID       [16]byte // of this backup
	Cluster  kv.ClusterID
	Epoch    kv.Epoch
	Revision kv.Revision // everything up to it is in the backup, and nothing later
	MeshTime int64       // unix milliseconds; what had expired by then is left out
	Created  int64       // unix milliseconds, by the clock of the node that made it
	Version  string      // of the kvmesh that made it
}

// Totals count what a backup holds.
type Totals struct {
	Namespaces, Keys uint64
	Bytes            uint64 // of keys and plaintext values
	Blobs            uint64 // keys with a large value
	BlobBytes        uint64 // of the large values, sealed
}

// head is everything before the parts.
type head struct {
	Header
	raw    []byte   // from the magic to the header's checksum
	digest [32]byte // of raw: it is part of what seals the parts
	kind   byte
	lock   []byte
}

// newHead encodes the header.
func newHead(h Header) (*head, error) {
	if len(h.Version) > maxVersionText {
		h.Version = h.Version[:maxVersionText]
	}
	body := append([]byte(nil), h.ID[:]...)
	body = append(body, h.Cluster[:]...)
	body = append(body, h.Epoch[:]...)
	for _, n := range []uint64{uint64(h.Revision), uint64(h.MeshTime), uint64(h.Created)} {
		body = binary.BigEndian.AppendUint64(body, n)
	}
	body = append(append(body, byte(len(h.Version))), h.Version...)
	raw := append([]byte(magic), version)
	raw = binary.BigEndian.AppendUint16(raw, uint16(len(body)))
	raw = append(raw, body...)
	raw = appendSum(raw, raw)
	return &head{Header: h, raw: raw, digest: sha256.Sum256(raw)}, nil
}

func appendSum(dst, of []byte) []byte { return binary.BigEndian.AppendUint64(dst, xxhash.Sum64(of)) }

// bytes is the head as it is written.
func (h *head) bytes() []byte {
	frame := binary.BigEndian.AppendUint16([]byte{h.kind}, uint16(len(h.lock)))
	frame = append(frame, h.lock...)
	frame = appendSum(frame, frame)
	return append(append([]byte(nil), h.raw...), frame...)
}

// readHead reads the head and not a byte more.
func readHead(r io.Reader) (*head, error) {
	h := &head{raw: make([]byte, len(magic)+1+2, 256)}
	if _, err := io.ReadFull(r, h.raw[:len(magic)]); err != nil {
		return nil, notBackup(err)
	}
	if string(h.raw[:len(magic)]) != magic {
		return nil, ErrNotBackup
	}
	if err := fill(r, h.raw[len(magic):]); err != nil {
		return nil, err
	}
	if v := h.raw[len(magic)]; v != version {
		return nil, fmt.Errorf("%w: its format is %d, this one reads %d; use the kvmesh that made it, or a newer one", ErrVersion, v, version)
	}
	n := int(binary.BigEndian.Uint16(h.raw[len(magic)+1:]))
	if n > maxHeader {
		return nil, fmt.Errorf("%w: a header of %d bytes", ErrDamaged, n)
	}
	start := len(h.raw)
	h.raw = append(h.raw, make([]byte, n+sumBytes)...)
	if err := fill(r, h.raw[start:]); err != nil {
		return nil, err
	}
	if err := checkSum(h.raw, "the header"); err != nil {
		return nil, err
	}
	h.digest = sha256.Sum256(h.raw)
	if err := h.parse(h.raw[start : start+n]); err != nil {
		return nil, err
	}
	return h, h.readLock(r)
}

func (h *head) parse(b []byte) error {
	d := decoder{rest: b}
	copy(h.ID[:], d.take(len(h.ID)))
	copy(h.Cluster[:], d.take(len(h.Cluster)))
	copy(h.Epoch[:], d.take(len(h.Epoch)))
	h.Revision, h.MeshTime, h.Created = kv.Revision(d.uint64()), int64(d.uint64()), int64(d.uint64())
	h.Version = string(d.take(int(d.byte())))
	if d.bad || len(d.rest) > 0 || h.MeshTime < 0 || h.Created < 0 {
		return fmt.Errorf("%w: a header of %d bytes", ErrDamaged, len(b))
	}
	return nil
}

func (h *head) readLock(r io.Reader) error {
	frame := make([]byte, 3, 128)
	if err := fill(r, frame); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(frame[1:]))
	if n > maxLock {
		return fmt.Errorf("%w: a lock of %d bytes", ErrDamaged, n)
	}
	frame = append(frame, make([]byte, n+sumBytes)...)
	if err := fill(r, frame[3:]); err != nil {
		return err
	}
	if err := checkSum(frame, "the lock"); err != nil {
		return err
	}
	h.kind, h.lock = frame[0], frame[3:3+n]
	if h.kind != lockKEK && h.kind != lockAddress {
		return fmt.Errorf("%w: it is sealed in a way (%d) that this one does not know; use a newer kvmesh", ErrVersion, h.kind)
	}
	if _, err := h.keyID(); err != nil {
		return err
	}
	return nil
}

// keyID is the id of the key that opens the lock: a sealed thing begins with a version byte and a key id.
func (h *head) keyID() (string, error) {
	if len(h.lock) < 5 {
		return "", fmt.Errorf("%w: a lock of %d bytes", ErrDamaged, len(h.lock))
	}
	return fmt.Sprintf("%x", h.lock[1:5]), nil
}

// context is that of the lock.
func (h *head) context() string { return "kvmesh backup key\x00" + string(h.digest[:]) }

// unlock opens the backup's key.
func (h *head) unlock(kek *seal.KEK) (key []byte, err error) {
	if id, err := h.keyID(); err != nil {
		return nil, err
	} else if id != kek.String() {
		return nil, fmt.Errorf("%w: the backup is sealed for the key %s, and this is the key %s", seal.ErrWrongKey, id, kek)
	}
	switch h.kind {
	case lockKEK:
		key, err = kek.Open(h.context(), h.lock)
	case lockAddress:
		key, err = kek.OpenHere(h.context(), h.lock)
	}
	if errors.Is(err, seal.ErrDamaged) {
		err = fmt.Errorf("%w: its header or its lock was changed", ErrDamaged)
	}
	if err == nil && len(key) != seal.KEKBytes {
		err = fmt.Errorf("%w: its key has %d bytes", ErrDamaged, len(key))
	}
	return key, err
}

// Readdress gives the same backup sealed for the mesh with an address, instead of the one that from belongs to: all but the
// lock is passed on as it is. It reads the head before it returns.
func Readdress(r io.Reader, from *seal.KEK, address []byte) (io.Reader, error) {
	h, err := readHead(r)
	if err != nil {
		return nil, err
	}
	key, err := h.unlock(from)
	if err != nil {
		return nil, err
	}
	h.kind = lockAddress
	if h.lock, err = seal.SealTo(address, h.context(), key); err != nil {
		return nil, err
	}
	return io.MultiReader(bytesReader(h.bytes()), r), nil
}

// partContext is what binds a part to its place.
func (h *head) partContext(number uint64, last bool) string {
	if mutPartUnbound {
		number, last = 0, false
	}
	b := append([]byte("kvmesh backup part\x00"), h.digest[:]...)
	b = binary.BigEndian.AppendUint64(b, number)
	if last {
		return string(append(b, 1))
	}
	return string(append(b, 0))
}

// fill reads all of p.
func fill(r io.Reader, p []byte) error {
	_, err := io.ReadFull(r, p)
	return cut(err)
}

// cut names the end of the source as what it is.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrCut
	}
	return err
}

// notBackup: what is shorter than the magic is no backup, rather than a cut one.
func notBackup(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrNotBackup
	}
	return err
}

// checkSum compares the checksum at the end of a frame with the rest of it.
func checkSum(frame []byte, of string) error {
	body := frame[:len(frame)-sumBytes]
	if binary.BigEndian.Uint64(frame[len(body):]) != xxhash.Sum64(body) {
		return fmt.Errorf("%w: the checksum of %s does not fit", ErrDamaged, of)
	}
	return nil
}
