package peer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

func TestFramesRoundTrip(t *testing.T) {
	var wire bytes.Buffer
	sizes := []int{0, 1, 505, 506, 507, growStep - 1, growStep, growStep + 1, 3 * growStep, MaxPayload}
	for i, n := range sizes {
		if err := WriteFrame(&wire, byte(i), bytes.Repeat([]byte{byte(i)}, n)); err != nil {
			t.Fatal(err)
		}
	}
	for name, r := range map[string]io.Reader{
		"whole":      bytes.NewReader(wire.Bytes()),
		"by halves":  iotest.HalfReader(bytes.NewReader(wire.Bytes())),
		"with error": iotest.DataErrReader(bytes.NewReader(wire.Bytes())),
	} {
		var buf []byte
		for i, n := range sizes {
			typ, payload, err := ReadFrame(r, buf)
			if err != nil || typ != byte(i) || !bytes.Equal(payload, bytes.Repeat([]byte{byte(i)}, n)) {
				t.Fatalf("%s: frame %d: type %d, %d bytes of %d, %v", name, i, typ, len(payload), n, err)
			}
			buf = payload[:0]
		}
		if _, _, err := ReadFrame(r, buf); err != io.EOF {
			t.Errorf("%s: after the last frame: %v", name, err)
		}
	}
}

func TestReadFrameReusesItsBuffer(t *testing.T) {
	b, err := AppendFrame(nil, 7, make([]byte, 4000))
	if err != nil {
		t.Fatal(err)
	}
	r, buf := bytes.NewReader(b), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		r.Reset(b)
		if _, _, err := ReadFrame(r, buf); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a frame", n)
	}
}

func TestBadFrames(t *testing.T) {
	head := func(n uint32, rest ...byte) []byte { return append(binary.BigEndian.AppendUint32(nil, n), rest...) }
	for name, tc := range map[string]struct {
		in   []byte
		want error
	}{
		"too long":            {head(MaxFrame+1, 1, 0), ErrFrame},
		"4 GiB":               {head(1<<32-1, 1, 0), ErrFrame},
		"too short":           {head(1, 1), ErrFrame},
		"empty":               {head(0), ErrFrame},
		"another version":     {head(2, 2, 0), ErrFrame},
		"cut in the length":   {[]byte{0, 0}, io.ErrUnexpectedEOF},
		"cut after it":        {head(3), io.ErrUnexpectedEOF},
		"cut in the payload":  {head(10, 1, 0, 'x'), io.ErrUnexpectedEOF},
		"cut before payload":  {head(10, 1, 0), io.ErrUnexpectedEOF},
		"text, not a frame":   {[]byte("GET / HTTP/1.1\r\n\r\n"), ErrFrame},
		"nothing at all":      {nil, io.EOF},
		"largest, then ended": {head(MaxFrame, 1, 0), io.ErrUnexpectedEOF},
	} {
		if _, _, err := ReadFrame(bytes.NewReader(tc.in), nil); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if err := WriteFrame(io.Discard, 0, make([]byte, MaxPayload+1)); !errors.Is(err, ErrFrame) ||
		!strings.Contains(err.Error(), "1048574") {
		t.Errorf("writing too much: %v, want the limit in it", err)
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// A length alone must not cost memory: ten thousand connections could each claim a megabyte.
func TestALengthAllocatesLittle(t *testing.T) {
	in := append(binary.BigEndian.AppendUint32(nil, MaxFrame), frameVersion, 0)
	in = append(in, make([]byte, 1000)...)
	if n := allocated(func() { _, _, _ = ReadFrame(bytes.NewReader(in), nil) }); n > 2*growStep {
		t.Errorf("a claimed megabyte allocated %d bytes", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	good, _ := AppendFrame(nil, 3, []byte("payload"))
	f.Add(good)
	f.Add(append(good, good...))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 1})
	f.Add([]byte{0, 0x10, 0, 0, 1, 1, 2, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		var again, buf []byte
		for {
			typ, payload, err := ReadFrame(r, buf)
			if err != nil {
				break
			}
			if again, err = AppendFrame(again, typ, payload); err != nil {
				t.Fatal(err)
			}
			if h, args, err := parseRequest(payload); err == nil && h.bodySize >= 0 {
				if b, err := appendRequest(nil, h, args); err != nil || !bytes.Equal(b[frameHead:], payload) {
					t.Fatalf("request %x became %x, %v", payload, b, err)
				}
			}
			if h, result, err := parseResponse(payload); err == nil && h.bodySize >= 0 {
				if b, err := appendResponse(nil, h, result); err != nil || !bytes.Equal(b[frameHead:], payload) {
					t.Fatalf("response %x became %x, %v", payload, b, err)
				}
			}
			buf = payload[:0]
		}
		if !bytes.HasPrefix(in, again) {
			t.Fatalf("%x was read as %x", in, again)
		}
	})
}
