package kv

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
)

// Lineage names one line of a mesh's log. A mesh begins with generation 1. When a quorum was lost for good, the survivor
// begins the next generation: its log goes on from where it was, and what the lost voters' disks hold must never be mixed
// with it. Lineages are ordered, so that two nodes of different ones know which of them has to stand down. The zero Lineage
// is that of a node that has no log yet.
type Lineage struct {
	Generation uint64
	ID         Epoch // made when the generation began; tells apart two survivors that were both recovered
}

// lineageBytes is the size of an encoded lineage.
const lineageBytes = 8 + len(Epoch{})

// IsZero says that the node has no log yet.
func (l Lineage) IsZero() bool { return l == Lineage{} }

// Compare orders lineages: -1, 0, 1.
func (l Lineage) Compare(o Lineage) int {
	return cmp.Or(cmp.Compare(l.Generation, o.Generation), bytes.Compare(l.ID[:], o.ID[:]))
}

// String is for people: the generation, and the last hex digits of the id.
func (l Lineage) String() string {
	if l.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%d (%s)", l.Generation, l.ID.Tag())
}

// AppendLineage encodes l in lineageBytes bytes.
func AppendLineage(dst []byte, l Lineage) []byte {
	return append(binary.BigEndian.AppendUint64(dst, l.Generation), l.ID[:]...)
}

// DecodeLineage reads what AppendLineage wrote.
func DecodeLineage(b []byte) (Lineage, error) {
	if len(b) != lineageBytes {
		return Lineage{}, errors.New("a lineage has 24 bytes")
	}
	l := Lineage{Generation: binary.BigEndian.Uint64(b)}
	copy(l.ID[:], b[8:])
	return l, nil
}
