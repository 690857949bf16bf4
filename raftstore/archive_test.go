package raftstore

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// Damage anywhere in the archive is found before it replaces anything, wherever it is cut or changed.
func TestDamagedArchive(t *testing.T) {
	src, srcDir := newState(t, 50)
	defer src.Close()
	from := openStore(t, srcDir, src)
	take(t, from, src, 40)
	_, r, err := from.Open(from.newest().ID)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	try := func(name string, archive []byte) error {
		if err := fs.MkdirAll(name, 0o700); err != nil {
			t.Fatal(err)
		}
		defer fs.RemoveAll(name)
		return unpack(fs, name, bytes.NewReader(archive))
	}
	if err := try("whole", whole); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		at := rng.IntN(len(whole))
		bad := bytes.Clone(whole)
		bad[at] ^= 1 << rng.IntN(8)
		if err := try("flipped", bad); !errors.Is(err, errArchive) {
			t.Errorf("bit flipped at %d of %d: %v", at, len(whole), err)
		}
		if err := try("cut", whole[:at]); !errors.Is(err, errArchive) {
			t.Errorf("cut at %d of %d: %v", at, len(whole), err)
		}
	}
	if err := try("longer", append(whole, 0)); !errors.Is(err, errArchive) {
		t.Errorf("a byte too much: %v", err)
	}
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, "a\x00", strings.Repeat("x", 256)} {
		if checkArchiveName(name) == nil {
			t.Errorf("file name %q is taken", name)
		}
	}

	st, dir := newState(t, 1)
	defer st.Close()
	to := openStore(t, dir, st)
	sink, err := to.Create(raft.SnapshotVersionMax, 40, 1, members, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	whole[len(whole)/2] ^= 1
	_, werr := sink.Write(whole[:len(whole)-1])
	if err := errors.Join(werr, sink.Close()); !errors.Is(err, errArchive) {
		t.Errorf("staged a damaged checkpoint: %v", err)
	}
	if _, _, err := to.Open(sink.ID()); err == nil {
		t.Error("it can be opened")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte(archiveMagic + "\x01\x01\x00\x01a\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte(archiveMagic + "\x01\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := unpack(vfs.NewMem(), "", bytes.NewReader(b)); err == nil && len(b) < len(archiveMagic)+1+13 {
			t.Errorf("took %d bytes", len(b))
		}
	})
}
