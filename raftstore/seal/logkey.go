package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
)

const (
	logKeyBytes   = 32
	logKeyContext = "log key"
	labelLog      = "kvmesh/log/1\x00"

	// sessionSeals is how many entries one salt seals; far below what AES-GCM with a counted nonce allows.
	sessionSeals = 1 << 32
	// maxSalts bounds the derived keys that are kept for opening. A log holds the salts of the last few starts.
	maxSalts = 64
)

// LogKey seals the entries of one node's Raft log. It never leaves the node; it lies beside the log, wrapped by the KEK.
//
// What it gives out is XAES-256-GCM (c2sp.org/XAES-256-GCM) in the frame of everything sealed, but with the first twelve
// bytes of the nonce, from which a message's key is derived, drawn once a session instead of once a message, and the other
// twelve counted. No pair comes twice, the key schedule is computed once, and any implementation of XAES-256-GCM opens the
// result. Safe for concurrent use.
type LogKey struct {
	id    uint32
	block cipher.Block
	k1    [aes.BlockSize]byte // CMAC's first subkey

	mu     sync.Mutex // guards all below
	salt   [saltBytes]byte
	aead   cipher.AEAD // of salt; nil before the first seal
	sealed uint64      // with salt
	opened map[[saltBytes]byte]cipher.AEAD
}

// NewLogKey makes a fresh log key and returns it wrapped.
func (k *KEK) NewLogKey() ([]byte, error) {
	var key [logKeyBytes]byte
	rand.Read(key[:]) // never fails
	return k.Seal(logKeyContext, key[:])
}

// OpenLogKey unwraps a log key. The errors are those of Unwrap.
func (k *KEK) OpenLogKey(wrapped []byte) (*LogKey, error) {
	key, err := k.Open(logKeyContext, wrapped)
	if err != nil {
		return nil, err
	}
	if len(key) != logKeyBytes {
		return nil, fmt.Errorf("%s: %w: %d bytes", logKeyContext, ErrVersion, len(key))
	}
	return newLogKey(key)
}

func newLogKey(key []byte) (*LogKey, error) {
	sum := sha256.Sum256(append([]byte("kvmesh/log-key-id/1\x00"), key...))
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	l := &LogKey{id: binary.BigEndian.Uint32(sum[:]), block: block, opened: make(map[[saltBytes]byte]cipher.AEAD)}
	// RFC 4493: K1 is AES(0) doubled in GF(2^128). The messages below are whole blocks, so K2 is never needed.
	block.Encrypt(l.k1[:], l.k1[:])
	carry := l.k1[0] >> 7
	for i := range l.k1 {
		l.k1[i] <<= 1
		if i+1 < len(l.k1) {
			l.k1[i] |= l.k1[i+1] >> 7
		}
	}
	l.k1[len(l.k1)-1] ^= carry * 0x87
	return l, nil
}

// derive makes the cipher of one salt: the CMACs of {0, i, 'X', 0, salt} for i = 1 and 2 are its key.
func (l *LogKey) derive(salt [saltBytes]byte) (cipher.AEAD, error) {
	key := make([]byte, 2*aes.BlockSize)
	for i := range 2 {
		half := key[i*aes.BlockSize : (i+1)*aes.BlockSize]
		copy(half, []byte{0, byte(i + 1), 'X', 0})
		copy(half[4:], salt[:])
		for j := range half {
			half[j] ^= l.k1[j]
		}
		l.block.Encrypt(half, half)
	}
	return newGCM(key)
}

// next is a nonce that was never used, and its cipher.
func (l *LogKey) next() (cipher.AEAD, [nonceBytes]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var nonce [nonceBytes]byte
	if l.aead == nil || l.sealed == sessionSeals {
		rand.Read(l.salt[:]) // never fails
		aead, err := l.derive(l.salt)
		if err != nil {
			return nil, nonce, err
		}
		l.aead, l.sealed = aead, 0
	}
	copy(nonce[:], l.salt[:])
	binary.BigEndian.PutUint64(nonce[nonceBytes-8:], l.sealed)
	l.sealed++
	return l.aead, nonce, nil
}

// of is the cipher of a salt.
func (l *LogKey) of(salt [saltBytes]byte) (cipher.AEAD, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.aead != nil && salt == l.salt {
		return l.aead, nil
	}
	if aead := l.opened[salt]; aead != nil {
		return aead, nil
	}
	aead, err := l.derive(salt)
	if err != nil {
		return nil, err
	}
	if len(l.opened) >= maxSalts { // damaged entries name salts that never were
		clear(l.opened)
	}
	l.opened[salt] = aead
	return aead, nil
}

// SealEntry appends plaintext, sealed as the entry of a log at index, of a term and a type, to dst. It is Overhead bytes
// longer.
func (l *LogKey) SealEntry(dst []byte, index, term uint64, kind byte, plaintext []byte) ([]byte, error) {
	aead, nonce, err := l.next()
	if err != nil {
		return nil, fmt.Errorf("seal log entry %d: %w", index, err)
	}
	dst = binary.BigEndian.AppendUint32(append(dst, version), l.id)
	dst = append(dst, nonce[:]...)
	data := entryData(index, term, kind)
	return aead.Seal(dst, nonce[saltBytes:], plaintext, data[:]), nil
}

// OpenEntry opens what SealEntry sealed for the same index, term and type: ErrDamaged, ErrWrongKey or ErrVersion.
func (l *LogKey) OpenEntry(index, term uint64, kind byte, sealed []byte) ([]byte, error) {
	id, err := parsePrefix(sealed, Overhead)
	if err == nil && id != l.id {
		err = fmt.Errorf("%w: it needs the log key %08x and this node has %08x", ErrWrongKey, id, l.id)
	}
	var plaintext []byte
	if err == nil {
		nonce := sealed[prefixBytes : prefixBytes+nonceBytes]
		var aead cipher.AEAD
		if aead, err = l.of([saltBytes]byte(nonce)); err == nil {
			data := entryData(index, term, kind)
			if plaintext, err = aead.Open(nil, nonce[saltBytes:], sealed[prefixBytes+nonceBytes:], data[:]); err != nil {
				err = ErrDamaged
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open log entry %d: %w", index, err)
	}
	return plaintext, nil
}

// entryData is the associated data of an entry.
func entryData(index, term uint64, kind byte) [len(labelLog) + 17]byte {
	var d [len(labelLog) + 17]byte
	n := copy(d[:], labelLog)
	binary.BigEndian.PutUint64(d[n:], index)
	binary.BigEndian.PutUint64(d[n+8:], term)
	d[n+16] = kind
	return d
}
