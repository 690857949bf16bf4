package state

import (
	"encoding/binary"

	"kvmesh/raftstore/kv"
)

// The key spaces. Ids and numbers have a fixed width and numbers are big endian, so byte order is the order that scans
// need, and a key needs no separator after them.
//
//	m/schema, m/applied, m/allowed, m/restore
//	n/<ns 16>                       namespace record, counts and bytes, last-modified revision; or a tombstone
//	k/<ns 16><key>                  the key's head, with a small value in it
//	v/<ns 16><key>                  a sealed value above inlineBytes
//	c/<revision 8>                  the change index
//	x/<expiry 8><ns 16><key>        the expiry index
//	b/<ns 16><blob id 16>           the blobs that heads name
//	g/<blob id 16>                  blobs that are no longer named, until their files are gone (local, not replicated)
//	t/k/<ns 16>, t/revision         control state: wrapped data keys, the revision of the last change
//
// The spaces that make up the content (n, k, v, x, b, t/k) exist twice, see bank.
const (
	spaceChange   = "c/"
	spaceReleased = "g/"

	keySchema          = "m/schema"
	keyApplied         = "m/applied"
	keyRestore         = "m/restore"
	keyAllowed         = "m/allowed"
	keyControlRevision = "t/revision"
)

const spaceBytes = 2 // length of a space's prefix; that of the wrapped keys is longer

// bank is one of two sets of spaces, each of which can hold a whole content. One is live; a restore fills the other one and
// then makes that one live, in one small write. m/restore says which it is, without that record it is the first.
type bank struct {
	number                                           byte
	namespace, head, value, expiry, blob, wrappedKey string
}

var banks = [2]*bank{
	{0, "n/", "k/", "v/", "x/", "b/", "t/k/"},
	{1, "N/", "K/", "V/", "X/", "B/", "T/k/"},
}

// other is the bank that is not b.
func (b *bank) other() *bank { return banks[1-b.number] }

// spaces lists all of them, in any order.
func (b *bank) spaces() []string {
	return []string{b.namespace, b.head, b.value, b.expiry, b.blob, b.wrappedKey}
}

func nsKey(dst []byte, space string, ns kv.NamespaceID) []byte {
	return append(append(dst, space...), ns[:]...)
}

func entryKey(dst []byte, space string, ns kv.NamespaceID, key string) []byte {
	return append(nsKey(dst, space, ns), key...)
}

func changeKey(dst []byte, rev kv.Revision) []byte {
	return binary.BigEndian.AppendUint64(append(dst, spaceChange...), uint64(rev))
}

func (b *bank) expiryKey(dst []byte, expiry int64, ns kv.NamespaceID, key string) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, b.expiry...), uint64(expiry))
	return append(append(dst, ns[:]...), key...)
}

// splitExpiryKey takes an expiry index key apart; ok is false when it is too short to be one.
func splitExpiryKey(k []byte) (expiry int64, ns kv.NamespaceID, key string, ok bool) {
	k = k[min(spaceBytes, len(k)):]
	if len(k) < 8+len(ns) {
		return 0, ns, "", false
	}
	expiry = int64(binary.BigEndian.Uint64(k))
	copy(ns[:], k[8:])
	return expiry, ns, string(k[8+len(ns):]), true
}

func (b *bank) blobKey(dst []byte, ns kv.NamespaceID, id kv.BlobID) []byte {
	return append(nsKey(dst, b.blob, ns), id[:]...)
}

func releasedKey(dst []byte, id kv.BlobID) []byte {
	return append(append(dst, spaceReleased...), id[:]...)
}

// prefixEnd returns the smallest key above every key that begins with p: the exclusive upper bound of a scan. nil when p
// is all 0xff, which no space is.
func prefixEnd(p []byte) []byte {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			end := append([]byte(nil), p[:i+1]...)
			end[i]++
			return end
		}
	}
	return nil
}
