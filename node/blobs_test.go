package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// A client's reader goes on at the next copy where one breaks off, is missing or cannot be opened, and never gives a byte
// that is not the value's.
func TestReadPastBadCopies(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	bad := []int{0, 3, 20, 1000, seal.SegmentSize - 1, seal.SegmentSize, 3*seal.SegmentSize + 5, someSegments - 1}
	for _, at := range bad {
		it := r.item(someSegments)
		r.store("a", it, wrong(it, at))
		r.store("c", it, it.sealed) // b lacks it
		for _, offset := range []int64{0, 5, seal.SegmentSize - 10, 3 * seal.SegmentSize, someSegments - 1, someSegments} {
			r.reads(fmt.Sprintf("byte %d is wrong, from %d on", at, offset), r.edge, it, offset)
		}
	}

	it := r.item(someSegments)
	for _, name := range r.names {
		r.store(name, it, it.sealed)
	}
	for _, at := range []int64{1, 2000, 5000, 100_000, 200_000, 330_000} {
		r.cutAt.Store(at)
		r.reads(fmt.Sprintf("the line breaks after %d bytes", at), r.edge, it, 0)
	}

	// Each has another bad segment: together they have the value.
	it = r.item(someSegments)
	r.store("a", it, wrong(it, 2*seal.SegmentSize))
	r.store("b", it, wrong(it, 3*seal.SegmentSize))
	r.store("c", it, wrong(it, 4*seal.SegmentSize))
	r.reads("three bad copies", r.edge, it, 0)

	it = r.item(someSegments) // nobody has a good one: an error, and no wrong byte
	for _, name := range r.names {
		r.store(name, it, wrong(it, 2*seal.SegmentSize+7))
	}
	v, err := r.open(r.edge, it, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(v)
	if kv.CodeOf(err) != kv.CodeUnavailable || !bytes.HasPrefix(it.plain, got) || len(got) < seal.SegmentSize {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n, again := v.Read(make([]byte, 10)); n != 0 || again == nil {
		t.Errorf("read on after the end: %d, %v", n, again)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.open(r.edge, r.item(100), 0); !errors.Is(err, fs.ErrNotExist) || kv.CodeOf(err) != kv.CodeUnavailable {
		t.Errorf("nobody has it: %v", err)
	}
}

// A part of a value is read over one connection, and costs its own segments and the header's.
func TestReadMiddle(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	it := r.item(50 * seal.SegmentSize)
	r.store("a", it, it.sealed)
	for _, part := range []span{
		{30 * seal.SegmentSize, 100},
		{30 * seal.SegmentSize, 3 * seal.SegmentSize},
		{0, 1},
		{10, seal.SegmentSize},
		{50*seal.SegmentSize - 7, 7},
		{50*seal.SegmentSize - seal.SegmentSize, 1000},
		{seal.SegmentSize, 0},
	} {
		r.dials.Store(0)
		r.received.Store(0)
		v, err := r.openPart(r.edge, it, part)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(v)
		if err := errors.Join(err, v.Close()); err != nil || !bytes.Equal(got, it.plain[part.offset:][:part.length]) {
			t.Errorf("%+v: %d bytes, %v", part, len(got), err)
		}
		if n := r.dials.Load(); n != 1 {
			t.Errorf("%+v: %d connections", part, n)
		}
		// The first segment, those of the part, at most one more on each side, and what TLS adds.
		if n, most := r.received.Load(), part.length+4*seal.SegmentSize+20_000; n > most {
			t.Errorf("%+v: %d bytes came, at most %d should", part, n, most)
		}
	}
}

// Where no voter is known a value is refused for now, and is not said to be gone.
func TestReadWithoutVoters(t *testing.T) {
	r := newBlobRig(t)
	_, err := r.open(r.edge, r.item(100), 0)
	if e := new(kv.Error); !errors.As(err, &e) || e.Code != kv.CodeUnavailable || e.RetryAfter == 0 || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A voter that lacks a value gives it all the same, from the others, and fetches it; asked for its own copy it says no.
func TestVotersGiveWhatTheyLack(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	it := r.item(someSegments)
	r.store("c", it, it.sealed)
	only := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a"}}, r.edge.dialer, r.edge.log)
	if _, err := r.open(only, it, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a value that nothing names: %v", err)
	}
	if n := r.voters["c"].keeper.MissingBlobs(); n != 0 {
		t.Errorf("c lacks %d", n)
	}
	r.name(it, "a")
	r.reads("through a voter that lacks it", only, it, 0)
	r.reads("at that voter", r.voters["a"].blobTransfer, it, 70_000)
	r.eventually("fetched", func() error {
		if n := r.voters["a"].keeper.MissingBlobs(); n != 0 {
			return fmt.Errorf("%d are missing", n)
		}
		return nil
	})
	r.reads("when it is there", only, it, 0)
	if _, _, err := only.ask(t.Context(), "a", blob.Ref{Namespace: blobSpace, ID: kv.NewBlobID()}, 0, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("own copies only: %v", err)
	}
	for _, offset := range []int64{-1, int64(len(it.sealed)) + 1} {
		if _, _, err := only.ask(t.Context(), "a", it.ref, offset, true); err == nil {
			t.Errorf("offset %d was taken", offset)
		}
	}
}

// A file in which a bit has flipped is not given to anybody: its voter gives the rest from another one, and replaces it. So
// it does with a copy whose file is well and that cannot be opened, once another voter's has proven that.
func TestVotersReplaceDamage(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	flipped, foreign := r.item(someSegments), r.item(someSegments+1)
	foreign.key = "other"
	s, err := r.key.SealingReader(blobSpace, foreign.key, foreign.id, bytes.NewReader(foreign.plain))
	if err != nil {
		t.Fatal(err)
	}
	if foreign.sealed, err = io.ReadAll(s); err != nil {
		t.Fatal(err)
	}
	a := r.voters["a"]
	for _, it := range []*item{flipped, foreign} {
		r.store("b", it, it.sealed)
	}
	r.store("a", flipped, flipped.sealed)
	r.store("a", foreign, wrong(foreign, 3*seal.SegmentSize))
	r.name(flipped, "a")
	_, err = a.state.Apply([]state.Entry{{Index: 2, Term: 1, Batch: command.Batch{MeshTime: 1, Ops: []command.Op{
		{Kind: command.KindPut, Namespace: blobSpace, Key: foreign.key, WriteID: foreign.id, Size: int64(len(foreign.plain)), Blob: foreign.ref.ID},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/blobs/%s/%s", blobSpace, flipped.ref.ID)
	f, err := a.disk.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(2*seal.SegmentSize + 9)
	if _, err := f.WriteAt([]byte{flipped.sealed[at] ^ 4}, at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	only := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a"}}, r.edge.dialer, r.edge.log)
	r.reads("through the voter with the damaged file", only, flipped, 0)
	r.reads("at that voter", a.blobTransfer, flipped, 0)
	r.reads("a copy that cannot be opened", a.blobTransfer, foreign, 0)
	for _, it := range []*item{flipped, foreign} {
		r.eventually("replaced", func() error {
			f, err := a.local.Open(blobSpace, it.ref.ID)
			if err != nil {
				return err
			}
			got, err := io.ReadAll(f)
			if err == nil && !bytes.Equal(got, it.sealed) {
				err = errors.New("it still holds other bytes")
			}
			return errors.Join(err, f.Close())
		})
	}
	aside := 0
	err = a.local.Damaged(func(blob.Ref, string, time.Time) error { aside++; return nil })
	if err != nil || aside != 2 {
		t.Errorf("%d files were moved aside, %v", aside, err)
	}
}

// An upload ends with a quorum of files, whoever of the voters is missing, and without one it fails and says so.
func TestUpload(t *testing.T) {
	r := newBlobRig(t, "a", "b", "c")
	it := r.item(someSegments)
	upload := func(by *blobTransfer, it *item) error {
		return by.put(t.Context(), blobSpace, it.ref.ID, bytes.NewReader(it.sealed))
	}
	if err := upload(r.voters["b"].blobTransfer, it); err != nil {
		t.Fatal(err)
	}
	have := func(it *item) (n int) {
		for _, v := range r.voters {
			f, err := v.local.Open(blobSpace, it.ref.ID)
			if err != nil {
				continue
			}
			got, err := io.ReadAll(f)
			if err := errors.Join(err, f.Close()); err != nil || !bytes.Equal(got, it.sealed) {
				t.Errorf("%s holds other bytes: %v", v.self, err)
			}
			n++
		}
		return n
	}
	if n := have(it); n < 2 {
		t.Errorf("acknowledged, and %d voters have it", n)
	}

	gone := newBlobTransfer(t.Context(), "edge", fixed{"edge", []string{"a", "b", "gone"}}, r.edge.dialer, r.edge.log)
	t.Cleanup(gone.lanes.Wait)
	it = r.item(10)
	if err := upload(gone, it); err != nil || have(it) != 2 {
		t.Errorf("one of three is gone: %v, %d have it", err, have(it))
	}
	gone.dir = fixed{"edge", []string{"a", "gone", "lost"}}
	if err := upload(gone, r.item(someSegments)); kv.CodeOf(err) != kv.CodeNoQuorum {
		t.Errorf("two of three are gone: %v", err)
	}
	it = r.item(someSegments)
	err := r.edge.put(t.Context(), blobSpace, it.ref.ID, io.MultiReader(bytes.NewReader(it.sealed[:100_000]), failedReader{errors.New("the client is gone")}))
	if err == nil || have(it) != 0 {
		t.Errorf("half a value: %v, %d have it", err, have(it))
	}
	if n := len(r.edge.chunks.tokens) + len(gone.chunks.tokens); n != 0 {
		r.eventually("buffers", func() error {
			if n := len(r.edge.chunks.tokens) + len(gone.chunks.tokens); n != 0 {
				return fmt.Errorf("%d buffers were not given back", n)
			}
			return nil
		})
	}

	// With no buffer free an upload waits, and then says why it does not go on.
	for range cap(r.edge.chunks.tokens) {
		r.edge.chunks.tokens <- struct{}{}
	}
	if err := upload(r.edge, r.item(10)); kv.CodeOf(err) != kv.CodeOverloaded {
		t.Errorf("no memory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.edge.chunks.get(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the client has gone: %v", err)
	}
}

// A voter serves a bounded number of connections, and tells the others so.
func TestBlobServesAreBounded(t *testing.T) {
	r := newBlobRig(t, "a", "b")
	it := r.item(100)
	r.store("a", it, it.sealed)
	r.store("b", it, it.sealed)
	for range cap(r.voters["a"].serves) {
		r.voters["a"].serves <- struct{}{}
	}
	if _, _, err := r.edge.ask(t.Context(), "a", it.ref, 0, true); kv.CodeOf(err) != kv.CodeOverloaded {
		t.Errorf("one too many: %v", err)
	}
	r.reads("a busy voter is passed over", r.edge, it, 0)
}

// What does not keep to the protocol ends the connection, or is told why not; nothing is stored.
func TestBlobProtocolErrors(t *testing.T) {
	r := newBlobRig(t, "a")
	say := func(frames ...func(blobConn) error) error {
		t.Helper()
		conn, err := r.edge.dial(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.hangUp()
		for _, f := range frames {
			if err := f(conn); err != nil {
				return err
			}
		}
		return conn.receive(wire.BlobDone, nil)
	}
	ref := &wire.BlobRef{Namespace: blobSpace, Blob: kv.NewBlobID()}
	begin := func(c blobConn) error { return c.send(wire.BlobPut, ref) }
	data := func(c blobConn) error { return peer.WriteFrame(c, wire.BlobData, []byte("data")) }
	end := func(n int64) func(blobConn) error {
		return func(c blobConn) error { return c.send(wire.BlobEnd, &wire.BlobTotal{Size: n}) }
	}
	for name, err := range map[string]error{
		"a wrong size":     say(begin, data, end(5)),
		"an unknown frame": say(func(c blobConn) error { return c.send(77, ref) }),
		"data first":       say(data),
		"a strange frame":  say(begin, data, func(c blobConn) error { return c.send(wire.BlobStat, ref) }),
		"no reference":     say(func(c blobConn) error { return peer.WriteFrame(c, wire.BlobGet, []byte{0xc1}) }),
		"not there":        say(func(c blobConn) error { return c.send(wire.BlobStat, ref) }),
	} {
		if err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := say(begin, data, end(4)); err != nil {
		t.Errorf("a good one: %v", err)
	}
	if err := say(begin, data, end(4)); err == nil {
		t.Error("the same one again was taken")
	}
	v := r.voters["a"]
	if names, err := v.disk.List("/blobs/tmp"); err != nil || len(names) != 0 {
		t.Errorf("left are %v, %v", names, err)
	}
}
