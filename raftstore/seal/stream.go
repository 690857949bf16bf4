package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"kvmesh/raftstore/kv"
)

// SegmentSize is the size of a sealed segment. Every segment of a sealed value starts at a multiple of it; the first one
// shares its place with the header, the last one may be shorter.
const SegmentSize = 64 << 10

const (
	// tinkHeaderBytes is Tink's part of the header: its own length, the salt, the nonce prefix.
	tinkHeaderBytes  = 1 + streamKeyBytes + noncePrefixBytes
	noncePrefixBytes = 7
	headerBytes      = prefixBytes + tinkHeaderBytes

	segmentPlain = SegmentSize - tagBytes
	firstPlain   = segmentPlain - headerBytes

	// maxSegments is what the 32-bit counter in the nonce allows.
	maxSegments = math.MaxUint32
)

// SealedSize is the number of bytes that a value of plain bytes takes as a sealed stream. Of a size that no stream can
// have (negative, or more than 2^32 segments) it is 0, which is no stream's size either.
func SealedSize(plain int64) int64 {
	if plain < 0 || plain > firstPlain+(maxSegments-1)*segmentPlain {
		return 0
	}
	return headerBytes + plain + (lastSegment(plain)+1)*tagBytes
}

// SealedEnd is how many sealed bytes of a value of size bytes hold its first n bytes of plaintext: whole segments.
func SealedEnd(n, size int64) int64 {
	return min((segmentOf(max(n-1, 0))+1)*SegmentSize, SealedSize(size))
}

// lastSegment is the number of the last segment of a value. Only an empty value has an empty segment.
func lastSegment(plain int64) int64 { return segmentOf(max(plain-1, 0)) }

// segmentOf is the number of the segment that holds the plaintext byte at offset.
func segmentOf(offset int64) int64 {
	if offset < firstPlain {
		return 0
	}
	return 1 + (offset-firstPlain)/segmentPlain
}

// segmentStart is the plaintext offset of a segment's first byte.
func segmentStart(segment int64) int64 {
	if segment == 0 {
		return 0
	}
	return firstPlain + (segment-1)*segmentPlain
}

// segmentAEAD seals and opens the segments of one stream: STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, "Online
// Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", eprint 2015/189) in the form of Tink's
// AES256-GCM-HKDF streaming AEAD. The stream's key comes from its salt and its associated data, a segment's nonce is the
// stream's prefix, the segment's number and whether it is the last. So segments cannot be reordered, dropped, or moved
// to another stream, and a stream cannot be cut at a segment's end.
type segmentAEAD struct {
	gcm   cipher.AEAD
	nonce [noncePrefixBytes + 4 + 1]byte
}

// newSegmentAEAD takes the salt and the nonce prefix from a checked header.
func newSegmentAEAD(streamKey, header, data []byte) (*segmentAEAD, error) {
	salt := header[prefixBytes+1:][:streamKeyBytes]
	key, err := hkdf.Key(sha256.New, streamKey, salt, string(data), streamKeyBytes)
	if err != nil {
		return nil, fmt.Errorf("derive stream key: %w", err)
	}
	s := new(segmentAEAD)
	if s.gcm, err = newGCM(key); err != nil {
		return nil, err
	}
	copy(s.nonce[:], header[prefixBytes+1+streamKeyBytes:headerBytes])
	return s, nil
}

func (s *segmentAEAD) setNonce(segment int64, last bool) []byte {
	binary.BigEndian.PutUint32(s.nonce[noncePrefixBytes:], uint32(segment))
	s.nonce[len(s.nonce)-1] = 0
	if last {
		s.nonce[len(s.nonce)-1] = 1
	}
	return s.nonce[:]
}

// SealingReader gives out the sealed form of a plaintext that it reads from somewhere else, one segment at a time, and
// holds no more than that. It is a reader and not a writer so that whoever sends one stream to several voters owns the
// buffers it reads into and the pace of the whole. For one goroutine.
//
//	version 1 | key id 4 | 40 | salt 32 | nonce prefix 7 | segment 0 | segment 1 | …
//
// From the sixth byte on this is Tink's layout, with a first segment that is shorter by the header. The ends of segments
// are thus multiples of SegmentSize in the file.
type SealingReader struct {
	src     io.Reader
	aead    *segmentAEAD
	segment int64 // the next one
	plain   int64
	carry   byte // the byte after the last sealed segment, once segment > 0: the proof that it was not the last
	buf     [SegmentSize]byte
	out     []byte // sealed and not yet given out, a part of buf
	err     error  // sticky; io.EOF after the last segment
}

// SealingReader seals the value that src gives, until io.EOF, as a large value of one write. Any other error of src,
// io.ErrUnexpectedEOF among them, is returned by Read and the stream stays without an end: what came out until then can
// never be opened as a whole value. src is not closed.
func (d *DataKey) SealingReader(ns kv.NamespaceID, key string, id kv.WriteID, src io.Reader) (*SealingReader, error) {
	r := &SealingReader{src: src}
	header := r.buf[:headerBytes]
	header[0] = version
	binary.BigEndian.PutUint32(header[1:], d.primary)
	header[prefixBytes] = tinkHeaderBytes
	if _, err := rand.Read(header[prefixBytes+1:]); err != nil {
		return nil, fmt.Errorf("seal blob: %w", err)
	}
	data := appendData(make([]byte, 0, dataBytes(key)), FieldBlob, ns, key, id)
	var err error
	if r.aead, err = newSegmentAEAD(d.streams[d.primary], header, data); err != nil {
		return nil, fmt.Errorf("seal blob: %w", err)
	}
	return r, nil
}

// PlainSize is the number of plaintext bytes taken from the source so far; after io.EOF the size of the value.
func (r *SealingReader) PlainSize() int64 { return r.plain }

func (r *SealingReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.out) == 0 {
		if r.err == nil {
			r.err = r.sealNext()
		}
		if len(r.out) == 0 {
			return 0, r.err
		}
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

// sealNext reads one segment of plaintext and one byte more, which tells whether the segment is the last one, and seals
// the segment in place. It returns io.EOF when that was the last.
func (r *SealingReader) sealNext() error {
	start, n := 0, 0
	if r.segment == 0 {
		start = headerBytes
		n = start
	} else {
		r.buf[0] = r.carry
		n = 1
	}
	got, err := readFull(r.src, r.buf[n:segmentPlain+1])
	r.plain += int64(got)
	n += got
	last := err == io.EOF
	if err != nil && !last {
		return err
	}
	if last && n > segmentPlain { // the source ended with the very byte that was one too many
		last = false
	}
	if !last {
		if r.segment == maxSegments-1 {
			return errors.New("seal blob: more segments than a stream can count")
		}
		n = segmentPlain
		r.carry = r.buf[n]
	}
	sealed := r.aead.gcm.Seal(r.buf[start:start], r.aead.setNonce(r.segment, last), r.buf[start:n], nil)
	r.out = r.buf[:start+len(sealed)]
	r.segment++
	if last {
		return io.EOF
	}
	return nil
}

// readFull reads until p is full or src fails. Unlike io.ReadFull it hands src's own error on: an io.ErrUnexpectedEOF that
// src returned (a body shorter than its Content-Length) must never be taken for the end of the value.
func readFull(src io.Reader, p []byte) (int, error) {
	n := 0
	for idle := 0; n < len(p); {
		got, err := src.Read(p[n:])
		if got < 0 || got > len(p)-n {
			return n, errors.New("source returned an impossible count")
		}
		n += got
		if err != nil {
			return n, err
		}
		if idle++; got > 0 {
			idle = 0
		} else if idle >= maxIdleReads {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// maxIdleReads is how often a source may return nothing without an error before that is one; bufio's number.
const maxIdleReads = 100
