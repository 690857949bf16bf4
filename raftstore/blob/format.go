package blob

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The file of a blob is
//
//	content | xxhash64 of each segment of the content | content length u64 | xxhash64 of all behind the content | magic
//
// Numbers are big endian. What describes the content stands behind it, so that a blob is written in one go although its
// length is known at the end only. The checksums find what a disk gets wrong; whether the content is genuine is for the
// cipher to say that sealed it, and for whoever has its key.
const (
	// SegmentBytes is the size of a segment: what is read, verified and sent again as a whole. The last one may be shorter.
	// It equals that of the streaming cipher, so that a reader at the start of a sealed segment reads no other.
	SegmentBytes = 64 << 10

	magic      = "kvblob\x00\x01"
	sumBytes   = 8
	tailBytes  = 8 + sumBytes + int64(len(magic)) // what follows the segments' checksums
	maxContent = 1 << 40                          // more than any blob: bounds what a damaged file can make us allocate
)

// ErrDamaged says that a blob's file is not what was written: a bit has flipped, or it was cut. The blob must not be served
// from it.
var ErrDamaged = errors.New("damaged blob")

// segments is the number of segments of a content.
func segments(content int64) int64 { return (content + SegmentBytes - 1) / SegmentBytes }

// fileSize is the size of the file of a content.
func fileSize(content int64) int64 { return content + segments(content)*sumBytes + tailBytes }

// contentSize is the inverse of fileSize; false for a length that no blob's file has.
func contentSize(file int64) (int64, bool) {
	file -= tailBytes
	n := (file + SegmentBytes + sumBytes - 1) / (SegmentBytes + sumBytes)
	content := file - n*sumBytes
	return content, content >= 0 && content <= maxContent && segments(content) == n
}

// segmentSize is the length of one segment of a content.
func segmentSize(segment, content int64) int64 {
	return min(SegmentBytes, content-segment*SegmentBytes)
}

// appendTail appends what stands behind the content.
func appendTail(dst, sums []byte, content int64) []byte {
	from := len(dst)
	dst = append(dst, sums...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(content))
	dst = binary.BigEndian.AppendUint64(dst, xxhash.Sum64(dst[from:]))
	return append(dst, magic...)
}

// readTail reads and checks what stands behind the content, and returns the checksums of the segments.
func readTail(f vfs.File, file int64) (sums []byte, content int64, err error) {
	content, ok := contentSize(file)
	if !ok {
		return nil, 0, fmt.Errorf("%w: a file of %d bytes", ErrDamaged, file)
	}
	tail := make([]byte, file-content)
	if n, err := f.ReadAt(tail, content); n < len(tail) {
		return nil, 0, fmt.Errorf("read the checksums: %w", err)
	}
	n := len(tail) - len(magic) - sumBytes
	sum := binary.BigEndian.Uint64(tail[n:])
	if string(tail[n+sumBytes:]) != magic || sum != xxhash.Sum64(tail[:n]) || int64(binary.BigEndian.Uint64(tail[n-8:])) != content {
		return nil, 0, fmt.Errorf("%w: its checksums do not hold", ErrDamaged)
	}
	return tail[: n-8 : n-8], content, nil
}

// checkSums says whether sums can be those of a content: as many as it has segments. They come from other nodes, too.
func checkSums(sums []byte, content int64) error {
	if content < 0 || content > maxContent || int64(len(sums)) != segments(content)*sumBytes {
		return fmt.Errorf("%d bytes of checksums for a content of %d bytes", len(sums), content)
	}
	return nil
}

// sumOf is the checksum of a segment within sums.
func sumOf(sums []byte, segment int64) uint64 {
	return binary.BigEndian.Uint64(sums[segment*sumBytes:])
}
