package seal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/tink-crypto/tink-go/v2/streamingaead/subtle"

	"kvmesh/raftstore/kv"
)

// The sizes around the ends of segments.
var streamSizes = []int{
	0, 1, 1000, firstPlain - 1, firstPlain, firstPlain + 1, SegmentSize, firstPlain + segmentPlain - 1,
	firstPlain + segmentPlain, firstPlain + segmentPlain + 1, firstPlain + 4*segmentPlain + 17,
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func sealStream(t testing.TB, d *DataKey, ns kv.NamespaceID, key string, id kv.WriteID, plain []byte) []byte {
	t.Helper()
	r := must(d.SealingReader(ns, key, id, bytes.NewReader(plain)))(t)
	return must(io.ReadAll(r))(t)
}

// bytesFrom is an open function over a slice.
func bytesFrom(sealed []byte) func(int64) (io.ReadCloser, error) {
	return func(offset int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(sealed[min(offset, int64(len(sealed))):])), nil
	}
}

func openStream(d *DataKey, ns kv.NamespaceID, key string, id kv.WriteID, sealed []byte, plainSize, offset int64) ([]byte, error) {
	r, err := d.OpenReader(ns, key, id, SealedSize(plainSize), plainSize, offset, bytesFrom(sealed))
	if err != nil {
		return nil, err
	}
	got, err := io.ReadAll(r)
	return got, errors.Join(err, r.Close())
}

func TestStreamRoundTrip(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	sources := map[string]func(io.Reader) io.Reader{
		"plain":            func(r io.Reader) io.Reader { return r },
		"half reads":       iotest.HalfReader,
		"EOF with data":    iotest.DataErrReader,
		"never WriteTo":    func(r io.Reader) io.Reader { return struct{ io.Reader }{r} },
		"byte by byte":     iotest.OneByteReader,
		"EOF with 1 of it": func(r io.Reader) io.Reader { return iotest.DataErrReader(iotest.OneByteReader(r)) },
	}
	for _, size := range streamSizes {
		plain := randomBytes(size)
		for name, source := range sources {
			r := must(d.SealingReader(ns, "key", id, source(bytes.NewReader(plain))))(t)
			sealed := must(io.ReadAll(source(r)))(t)
			if int64(len(sealed)) != SealedSize(int64(size)) || r.PlainSize() != int64(size) {
				t.Errorf("%s, %d bytes: sealed in %d, SealedSize says %d; PlainSize %d", name, size, len(sealed), SealedSize(int64(size)), r.PlainSize())
			}
			opened := must(d.OpenReader(ns, "key", id, int64(len(sealed)), int64(size), 0, bytesFrom(sealed)))(t)
			if got := must(io.ReadAll(source(opened)))(t); !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: opened to something else", name, size)
			}
			opened = must(d.OpenReader(ns, "key", id, int64(len(sealed)), int64(size), 0, bytesFrom(sealed)))(t)
			var copied bytes.Buffer
			if n := must(io.Copy(&copied, opened))(t); n != int64(size) || !bytes.Equal(copied.Bytes(), plain) {
				t.Errorf("%s, %d bytes: copied %d, something else", name, size, n)
			}
		}
	}
}

func TestSealedSizeLimits(t *testing.T) {
	for _, size := range []int64{-1, math.MinInt64, math.MaxInt64, firstPlain + (maxSegments-1)*segmentPlain + 1} {
		if got := SealedSize(size); got != 0 {
			t.Errorf("SealedSize(%d) = %d, want 0", size, got)
		}
		d := newKey(t, kv.NamespaceID{})
		if _, err := d.OpenReader(kv.NamespaceID{}, "key", kv.WriteID{}, 0, size, 0, bytesFrom(nil)); !errors.Is(err, ErrDamaged) {
			t.Errorf("OpenReader of %d bytes: error %v, want ErrDamaged", size, err)
		}
	}
	if got := SealedSize(firstPlain + (maxSegments-1)*segmentPlain); got != maxSegments*SegmentSize {
		t.Errorf("the largest stream has %d bytes, want %d", got, int64(maxSegments)*SegmentSize)
	}
}

// Tink reads what we seal, and we read what Tink seals.
func TestTinkInterop(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	tink := must(subtle.NewAESGCMHKDF(d.streams[d.primary], "SHA256", 32, SegmentSize, prefixBytes))(t)
	data := appendData(nil, FieldBlob, ns, "key", id)
	for _, size := range streamSizes {
		plain := randomBytes(size)
		ours := sealStream(t, d, ns, "key", id, plain)
		r := must(tink.NewDecryptingReader(bytes.NewReader(ours[prefixBytes:]), data))(t)
		if got := must(io.ReadAll(r))(t); !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: Tink opened something else", size)
		}

		theirs := bytes.NewBuffer(bytes.Clone(ours[:prefixBytes]))
		w := must(tink.NewEncryptingWriter(theirs, data))(t)
		must(w.Write(plain))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := must(openStream(d, ns, "key", id, theirs.Bytes(), int64(size), 0))(t); !bytes.Equal(got, plain) {
			t.Errorf("%d bytes: opened something else than Tink sealed", size)
		}
	}
}

// A source that fails, at whatever byte and with whatever error, must not leave a stream that opens as a whole value.
func TestSourceErrorLeavesNoEnd(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	for _, cause := range []error{errors.New("boom"), io.ErrUnexpectedEOF} {
		for _, size := range streamSizes {
			src := io.MultiReader(bytes.NewReader(randomBytes(size)), iotest.ErrReader(cause))
			r := must(d.SealingReader(ns, "key", id, src))(t)
			sealed, err := io.ReadAll(r)
			if !errors.Is(err, cause) {
				t.Errorf("after %d bytes: error %v, want %v", size, err, cause)
			}
			if _, err := r.Read(make([]byte, 1)); !errors.Is(err, cause) {
				t.Errorf("the error is not sticky: %v", err)
			}
			if len(sealed)%SegmentSize != 0 {
				t.Errorf("after %d bytes: a short segment came out: %d bytes", size, len(sealed))
			}
			segments := int64(len(sealed) / SegmentSize)
			if _, err := openStream(d, ns, "key", id, sealed, segmentStart(segments), 0); err == nil {
				t.Errorf("after %d bytes: the unfinished stream opens", size)
			}
		}
	}
	stuck := must(d.SealingReader(ns, "key", id, iotest.ErrReader(nil)))(t)
	if _, err := stuck.Read(make([]byte, 1)); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("source without progress: error %v", err)
	}
}

func TestSealingReaderReadsAhead(t *testing.T) {
	ns := kv.NewNamespaceID()
	src := bytes.NewReader(randomBytes(10 * SegmentSize))
	r := must(newKey(t, ns).SealingReader(ns, "key", kv.NewWriteID(), src))(t)
	must(r.Read(make([]byte, 1)))(t)
	if taken := 10*SegmentSize - src.Len(); taken > SegmentSize {
		t.Errorf("one byte took %d bytes from the source, more than a segment", taken)
	}
}

func TestOffsetReads(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	plain := randomBytes(firstPlain + 3*segmentPlain + 500)
	sealed := sealStream(t, d, ns, "key", id, plain)

	offsets := []int{0, 1, len(plain) - 1, len(plain)}
	for segment := range int64(4) {
		start := int(segmentStart(segment + 1))
		offsets = append(offsets, min(start-1, len(plain)), min(start, len(plain)), min(start+1, len(plain)))
	}
	for range 20 {
		offsets = append(offsets, rand.IntN(len(plain)))
	}
	for _, offset := range offsets {
		var asked []int64
		open := func(o int64) (io.ReadCloser, error) {
			asked = append(asked, o)
			return bytesFrom(sealed)(o)
		}
		r, err := d.OpenReader(ns, "key", id, int64(len(sealed)), int64(len(plain)), int64(offset), open)
		if err != nil {
			t.Errorf("offset %d: %v", offset, err)
			continue
		}
		if got := must(io.ReadAll(r))(t); !bytes.Equal(got, plain[offset:]) {
			t.Errorf("offset %d: %d bytes, not the same as plain[%d:]", offset, len(got), offset)
		}
		want := []int64{0}
		if s := segmentOf(min(int64(offset), int64(len(plain))-1)); s > 0 {
			want = append(want, s*SegmentSize)
		}
		if fmt.Sprint(asked) != fmt.Sprint(want) {
			t.Errorf("offset %d: opened the source at %v, want %v", offset, asked, want)
		}
	}
	for _, offset := range []int64{-1, int64(len(plain)) + 1} {
		if _, err := openStream(d, ns, "key", id, sealed, int64(len(plain)), offset); err == nil {
			t.Errorf("offset %d outside the value: no error", offset)
		}
	}
}

func TestStreamTruncation(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	plain := randomBytes(firstPlain + 3*segmentPlain)
	sealed := sealStream(t, d, ns, "key", id, plain)

	cuts := []int{0, 1, prefixBytes, headerBytes - 1, headerBytes, headerBytes + 1, len(sealed) - 1}
	for at := SegmentSize; at < len(sealed); at += SegmentSize {
		cuts = append(cuts, at-1, at, at+1, at+tagBytes, at+tagBytes+1)
	}
	for _, cut := range cuts {
		got, err := openStream(d, ns, "key", id, sealed[:cut], int64(len(plain)), 0)
		if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrDamaged) {
			t.Errorf("cut to %d bytes: error %v, want unexpected EOF", cut, err)
		}
		if !bytes.HasPrefix(plain, got) || len(got)%segmentPlain > firstPlain {
			t.Errorf("cut to %d bytes: gave out %d bytes of an unverified segment", cut, len(got))
		}
		// The sizes lie as well, and fit the rest.
		if size := int64(cut) - headerBytes - int64((cut+SegmentSize-1)/SegmentSize)*tagBytes; size >= 0 && SealedSize(size) == int64(cut) {
			if _, err := openStream(d, ns, "key", id, sealed[:cut], size, size); !errors.Is(err, ErrDamaged) {
				t.Errorf("cut to %d bytes with fitting sizes: error %v, want ErrDamaged", cut, err)
			}
		}
	}
	// A reader at the very end has still seen that the end is there.
	if _, err := openStream(d, ns, "key", id, sealed[:len(sealed)-1], int64(len(plain)), int64(len(plain))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("offset at the end of a cut stream: error %v, want unexpected EOF", err)
	}
}

func TestStreamDamage(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	short := sealStream(t, d, ns, "key", id, []byte("short"))
	flipEveryBit(short, func(at int, changed []byte) {
		if _, err := openStream(d, ns, "key", id, changed, 5, 0); !errors.Is(err, wantFor(at)) {
			t.Errorf("bit of byte %d flipped: error %v, want %v", at, err, wantFor(at))
		}
	})

	plain := randomBytes(firstPlain + 2*segmentPlain + 100)
	sealed := sealStream(t, d, ns, "key", id, plain)
	for segment := range int64(4) {
		end := min((segment+1)*SegmentSize, int64(len(sealed)))
		for _, at := range []int64{max(segment*SegmentSize, headerBytes), (segment*SegmentSize + end) / 2, end - 1} {
			changed := bytes.Clone(sealed)
			changed[at] ^= 0x10
			got, err := openStream(d, ns, "key", id, changed, int64(len(plain)), 0)
			if !errors.Is(err, ErrDamaged) || !bytes.Equal(got, plain[:segmentStart(segment)]) && segment > 0 {
				t.Errorf("byte %d changed: %d bytes given out, error %v; want the %d before its segment and ErrDamaged", at, len(got), err, segmentStart(segment))
			}
		}
	}
	swapped := bytes.Clone(sealed)
	copy(swapped[SegmentSize:], sealed[2*SegmentSize:3*SegmentSize])
	copy(swapped[2*SegmentSize:], sealed[SegmentSize:2*SegmentSize])
	if _, err := openStream(d, ns, "key", id, swapped, int64(len(plain)), 0); !errors.Is(err, ErrDamaged) {
		t.Errorf("two segments swapped: error %v, want ErrDamaged", err)
	}
}

func TestStreamAssociatedDataMatters(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	sealed := sealStream(t, d, ns, "key", id, []byte("value"))
	for name, open := range map[string]func() ([]byte, error){
		"namespace": func() ([]byte, error) { return openStream(d, kv.NewNamespaceID(), "key", id, sealed, 5, 0) },
		"key":       func() ([]byte, error) { return openStream(d, ns, "kez", id, sealed, 5, 0) },
		"write id":  func() ([]byte, error) { return openStream(d, ns, "key", kv.NewWriteID(), sealed, 5, 0) },
		"format":    func() ([]byte, error) { return d.Open(FieldBlob, ns, "key", id, sealed) },
	} {
		if _, err := open(); !errors.Is(err, ErrDamaged) {
			t.Errorf("other %s: error %v, want ErrDamaged", name, err)
		}
	}
}

// trackedSource counts what is open and fails where it is told to.
type trackedSource struct {
	io.Reader
	open *int
}

func (s trackedSource) Close() error { *s.open--; return nil }

func TestOpenReaderClosesItsSources(t *testing.T) {
	ns, id := kv.NewNamespaceID(), kv.NewWriteID()
	d := newKey(t, ns)
	plain := randomBytes(3 * SegmentSize)
	sealed := sealStream(t, d, ns, "key", id, plain)
	damaged := bytes.Clone(sealed)
	damaged[SegmentSize+7] ^= 1
	boom := errors.New("boom")

	for _, c := range []struct {
		name   string
		sealed []byte
		offset int64
		failAt int64 // offset at which open fails
		want   error
	}{
		{"whole", sealed, 0, -1, nil},
		{"from the second segment", sealed, SegmentSize, -1, nil},
		{"damaged second segment", damaged, SegmentSize, -1, ErrDamaged},
		{"open fails", sealed, 0, 0, boom},
		{"second open fails", sealed, SegmentSize, SegmentSize, boom},
		{"no header", nil, 0, -1, io.ErrUnexpectedEOF},
	} {
		open := 0
		r, err := d.OpenReader(ns, "key", id, int64(len(sealed)), int64(len(plain)), c.offset, func(o int64) (io.ReadCloser, error) {
			if o == c.failAt {
				return nil, boom
			}
			open++
			return trackedSource{bytes.NewReader(c.sealed[min(int(o), len(c.sealed)):]), &open}, nil
		})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
		if err == nil {
			must(r.Read(make([]byte, 10)))(t)
			if err := errors.Join(r.Close(), r.Close()); err != nil {
				t.Errorf("%s: close: %v", c.name, err)
			}
			if _, err := r.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
				t.Errorf("%s: read after close: %v", c.name, err)
			}
		}
		if open != 0 {
			t.Errorf("%s: %d sources left open", c.name, open)
		}
	}
}

// Whatever a peer or a disk hands over, opening must end in an error and not in a panic.
func FuzzOpen(f *testing.F) {
	ns, id := kv.NamespaceID{1}, kv.WriteID{2}
	d := newKey(f, ns)
	k := newKEK(f, 1)
	f.Add(sealStream(f, d, ns, "key", id, []byte("plain")), int64(5), int64(0))
	f.Add(append([]byte{version, 0, 0, 0, 0, tinkHeaderBytes}, make([]byte, 80)...), int64(41), int64(41))
	f.Add([]byte{}, int64(math.MaxInt64), int64(-1))
	f.Fuzz(func(t *testing.T, sealed []byte, size, offset int64) {
		if r, err := d.OpenReader(ns, "other", id, int64(len(sealed)), size, offset, bytesFrom(sealed)); err == nil {
			t.Errorf("opened %v", r)
		}
		if _, err := d.Open(FieldValue, ns, "other", id, sealed); err == nil {
			t.Error("opened as a value")
		}
		if _, err := k.Unwrap(ns, sealed); err == nil {
			t.Error("unwrapped")
		}
	})
}

func BenchmarkStream(b *testing.B) {
	ns, id, plain := kv.NewNamespaceID(), kv.NewWriteID(), randomBytes(1<<20)
	d := newKey(b, ns)
	sealed := sealStream(b, d, ns, "key", id, plain)
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(1 << 20)
		for b.Loop() {
			r := must(d.SealingReader(ns, "key", id, bytes.NewReader(plain)))(b)
			must(io.Copy(io.Discard, r))(b)
		}
	})
	b.Run("open", func(b *testing.B) {
		b.SetBytes(1 << 20)
		for b.Loop() {
			r := must(d.OpenReader(ns, "key", id, int64(len(sealed)), int64(len(plain)), 0, bytesFrom(sealed)))(b)
			must(io.Copy(io.Discard, r))(b)
		}
	})
}
