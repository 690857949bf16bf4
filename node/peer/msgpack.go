package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmihailenco/msgpack/v5"
	"github.com/vmihailenco/msgpack/v5/msgpcode"
)

const (
	// maxMsgpackDepth is how deep arrays and maps may nest. The library decodes by recursion, and a few megabytes of nested
	// arrays would overflow the stack, which ends the process.
	maxMsgpackDepth = 8
	// maxMsgpackValues bounds the values of one message, because a one-byte nil may become an element of a hundred bytes.
	maxMsgpackValues = 256 << 10
)

// ErrMsgpack is wrapped by every error about a message that cannot be decoded.
var ErrMsgpack = errors.New("malformed msgpack")

// Encode encodes a struct for the wire. Structs become arrays of their fields in the order of declaration, so names cost
// nothing and field order is the format: both sides must have the same fields, and a changed struct needs a new method.
// nil becomes no bytes at all.
func Encode(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	var out bytes.Buffer
	enc := msgpack.NewEncoder(&out)
	enc.UseArrayEncodedStructs(true)
	enc.UseCompactInts(true)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return out.Bytes(), nil
}

// Decode decodes what Encode wrote into a pointer to a struct, which must hold no interface values. It refuses messages
// larger than a frame, nested deeper than eight levels, with lengths beyond their end, or with anything after the value,
// before the library allocates for them. Byte slices of the result share no memory with b.
func Decode(b []byte, into any) (err error) {
	if err := checkMsgpack(b); err != nil {
		return err
	}
	// The library has paniced on strange input before, and this input comes from outside.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: decoding into %T: %v", ErrMsgpack, into, p)
		}
	}()
	if err := msgpack.NewDecoder(bytes.NewReader(b)).Decode(into); err != nil {
		return fmt.Errorf("%w: decoding into %T: %w", ErrMsgpack, into, err)
	}
	return nil
}

// checkMsgpack walks one message without recursion or allocation and checks every length in it against the bytes that are
// there. The library's own cap on allocations is dead code, a 5-byte array header makes it ask for gigabytes.
func checkMsgpack(b []byte) error {
	if len(b) > MaxFrame {
		return fmt.Errorf("%w: %d bytes; the limit is %d", ErrMsgpack, len(b), MaxFrame)
	}
	var left [maxMsgpackDepth + 1]int // values still to come on each level that is open
	left[0] = 1
	level, values, pos := 0, 0, 0
	for {
		for left[level] == 0 {
			if level == 0 {
				if pos != len(b) {
					return fmt.Errorf("%w: %d bytes after the value", ErrMsgpack, len(b)-pos)
				}
				return nil
			}
			level--
		}
		left[level]--
		if values++; values > maxMsgpackValues {
			return fmt.Errorf("%w: more than %d values", ErrMsgpack, maxMsgpackValues)
		}
		size, children, err := msgpackItem(b[pos:])
		if err != nil {
			return err
		}
		pos += size
		if children > 0 {
			if children > len(b)-pos {
				return fmt.Errorf("%w: an array or map of %d values with %d bytes left", ErrMsgpack, children, len(b)-pos)
			}
			if level++; level > maxMsgpackDepth {
				return fmt.Errorf("%w: nested deeper than %d levels", ErrMsgpack, maxMsgpackDepth)
			}
			left[level] = children
		}
	}
}

// msgpackItem measures the item at the start of b: its own bytes, and how many values follow as its children.
func msgpackItem(b []byte) (size, children int, err error) {
	if len(b) == 0 {
		return 0, 0, fmt.Errorf("%w: it ends too early", ErrMsgpack)
	}
	c := b[0]
	lenBytes, fixed, perCount := 0, 0, 0 // bytes of the length field; fixed bytes after it; children per count (0: bytes)
	count := -1                          // known from the code itself, -1 otherwise
	switch {
	case msgpcode.IsFixedNum(c):
		count = 0
	case msgpcode.IsFixedString(c):
		count = int(c & msgpcode.FixedStrMask)
	case msgpcode.IsFixedArray(c):
		count, perCount = int(c&msgpcode.FixedArrayMask), 1
	case msgpcode.IsFixedMap(c):
		count, perCount = int(c&msgpcode.FixedMapMask), 2
	case msgpcode.IsFixedExt(c):
		count, fixed = 1<<(c-msgpcode.FixExt1), 1
	default:
		switch c {
		case msgpcode.Nil, msgpcode.False, msgpcode.True:
			count = 0
		case msgpcode.Uint8, msgpcode.Int8:
			count = 1
		case msgpcode.Uint16, msgpcode.Int16:
			count = 2
		case msgpcode.Uint32, msgpcode.Int32, msgpcode.Float:
			count = 4
		case msgpcode.Uint64, msgpcode.Int64, msgpcode.Double:
			count = 8
		case msgpcode.Str8, msgpcode.Bin8:
			lenBytes = 1
		case msgpcode.Str16, msgpcode.Bin16:
			lenBytes = 2
		case msgpcode.Str32, msgpcode.Bin32:
			lenBytes = 4
		case msgpcode.Array16:
			lenBytes, perCount = 2, 1
		case msgpcode.Array32:
			lenBytes, perCount = 4, 1
		case msgpcode.Map16:
			lenBytes, perCount = 2, 2
		case msgpcode.Map32:
			lenBytes, perCount = 4, 2
		case msgpcode.Ext8:
			lenBytes, fixed = 1, 1
		case msgpcode.Ext16:
			lenBytes, fixed = 2, 1
		case msgpcode.Ext32:
			lenBytes, fixed = 4, 1
		default:
			return 0, 0, fmt.Errorf("%w: code %#02x", ErrMsgpack, c)
		}
	}
	size = 1 + lenBytes + fixed
	if len(b) < size {
		return 0, 0, fmt.Errorf("%w: it ends too early", ErrMsgpack)
	}
	switch lenBytes {
	case 1:
		count = int(b[1])
	case 2:
		count = int(binary.BigEndian.Uint16(b[1:]))
	case 4:
		n := binary.BigEndian.Uint32(b[1:])
		if n > MaxFrame { // also keeps the sums below from overflowing where int has 32 bits
			return 0, 0, fmt.Errorf("%w: a length of %d in %d bytes", ErrMsgpack, n, len(b))
		}
		count = int(n)
	}
	if perCount > 0 {
		return size, count * perCount, nil
	}
	if count > len(b)-size {
		return 0, 0, fmt.Errorf("%w: a value of %d bytes with %d left", ErrMsgpack, count, len(b)-size)
	}
	return size + count, 0, nil
}
