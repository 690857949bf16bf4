package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	// MaxFrame is the largest frame: version byte, type byte and payload together, without the length before them.
	MaxFrame = 1 << 20
	// MaxPayload is the largest payload of a frame.
	MaxPayload = MaxFrame - 2

	// FrameHead is the size of what stands before the payload of a frame.
	FrameHead = frameHead

	frameVersion = 1
	frameHead    = 4 + 2 // length, version, type

	// growStep is the most that is allocated on the word of a length alone. Every further byte of memory is paid for by a
	// byte that has arrived.
	growStep = 64 << 10
)

// ErrFrame is wrapped by errors about frames that break the format; the connection cannot be used any further.
var ErrFrame = errors.New("malformed frame")

// AppendFrame appends one frame to dst:
//
//	length 4 (of all that follows, big endian) | version 1 | type 1 | payload
//
// A payload above MaxPayload is refused with an error that wraps ErrFrame.
func AppendFrame(dst []byte, typ byte, payload []byte) ([]byte, error) {
	if len(payload) > MaxPayload {
		return dst, fmt.Errorf("%w: a payload of %d bytes; the limit is %d", ErrFrame, len(payload), MaxPayload)
	}
	return append(appendFrameHead(dst, typ, len(payload)), payload...), nil
}

// PutFrameHead writes the first FrameHead bytes of a frame to dst, for a caller that has the payload of n bytes behind them
// in the same memory and sends both with one Write. n must not exceed MaxPayload.
func PutFrameHead(dst []byte, typ byte, n int) { appendFrameHead(dst[:0:FrameHead], typ, n) }

func appendFrameHead(dst []byte, typ byte, n int) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(n+2))
	return append(dst, frameVersion, typ)
}

// WriteFrame writes one frame with a single Write.
func WriteFrame(w io.Writer, typ byte, payload []byte) error {
	b, err := AppendFrame(make([]byte, 0, frameHead+len(payload)), typ, payload)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}

// ReadFrame reads one frame. The payload uses the memory of buf where that is large enough: a caller that passes the last
// payload back as buf[:0] reads without allocating, and must have no more use for it. At the end of the stream the error
// is io.EOF before a frame and io.ErrUnexpectedEOF inside one.
func ReadFrame(r io.Reader, buf []byte) (typ byte, payload []byte, err error) {
	if cap(buf) < frameHead {
		buf = make([]byte, 0, 512)
	}
	head := buf[:frameHead]
	if _, err := io.ReadFull(r, head[:4]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head)
	if n < 2 || n > MaxFrame {
		return 0, nil, fmt.Errorf("%w: length %d; it is between 2 and %d", ErrFrame, n, MaxFrame)
	}
	if _, err := io.ReadFull(r, head[4:]); err != nil {
		return 0, nil, unexpected(err)
	}
	if head[4] != frameVersion {
		return 0, nil, fmt.Errorf("%w: version %d, this node knows %d", ErrFrame, head[4], frameVersion)
	}
	typ = head[5]
	payload, err = readGrowing(r, buf[:0], int(n)-2)
	return typ, payload, err
}

// readGrowing reads n bytes into buf, which grows with what arrives: by growStep at first, then by doubling.
func readGrowing(r io.Reader, buf []byte, n int) ([]byte, error) {
	buf = buf[:0]
	for len(buf) < n {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(n, max(growStep, 2*len(buf))))
			copy(grown, buf)
			buf = grown
		}
		have := len(buf)
		buf = buf[:min(n, cap(buf))]
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			return nil, unexpected(err)
		}
	}
	return buf, nil
}

// unexpected says that the end of the stream is one in the middle of something.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
