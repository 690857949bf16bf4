package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/seal"
)

func openTestLog(t testing.TB, dir string) *diskLog {
	t.Helper()
	l, err := openDiskLog(dir, testKEK(t))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t testing.TB, l *diskLog) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// testEntry is entry i of every test log. Every hundredth is a membership.
func testEntry(i uint64) *raft.Log {
	l := &raft.Log{
		Index: i, Term: 1 + i/50, Type: raft.LogCommand, Data: fmt.Appendf(nil, "the command of entry %d, a key name", i),
		Extensions: []byte("ext"), AppendedAt: time.Unix(1e9, int64(i)),
	}
	if i%100 == 1 {
		l.Type = raft.LogConfiguration
	}
	return l
}

func fill(t testing.TB, l *diskLog, lo, hi uint64) {
	t.Helper()
	for i := lo; i <= hi; {
		var batch []*raft.Log
		for n := uint64(0); n < 1+i%7 && i <= hi; n++ {
			batch = append(batch, testEntry(i))
			i++
		}
		if err := l.StoreLogs(batch); err != nil {
			t.Fatal(err)
		}
	}
}

func sameEntry(a, b *raft.Log) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Type == b.Type && bytes.Equal(a.Data, b.Data) &&
		bytes.Equal(a.Extensions, b.Extensions) && a.AppendedAt.Equal(b.AppendedAt)
}

func TestDiskLog(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	if first, err := l.FirstIndex(); first != 0 || err != nil {
		t.Errorf("an empty log begins at %d, %v", first, err)
	}
	if _, err := l.GetUint64([]byte("CurrentTerm")); err == nil || err.Error() != "not found" {
		t.Errorf("a term that was never set: %v", err) // the library knows that text
	}
	fill(t, l, 1, 500)
	for _, v := range []uint64{3, 7} {
		if err := l.SetUint64([]byte("CurrentTerm"), v); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Set([]byte("LastVoteCand"), []byte("b")), l.DeleteRange(1, 150), l.DeleteRange(401, 500)); err != nil {
		t.Fatal(err)
	}
	check := func(l *diskLog) {
		t.Helper()
		first, err1 := l.FirstIndex()
		last, err2 := l.LastIndex()
		if first != 151 || last != 400 || errors.Join(err1, err2) != nil {
			t.Errorf("entries %d to %d, %v %v", first, last, err1, err2)
		}
		for i := first; i <= last; i++ {
			var got raft.Log
			if m, err := l.sealedLog.read(i, &got); err != nil || !sameEntry(&got, testEntry(i)) || m.config != (i-1)/100*100+1 {
				t.Fatalf("entry %d is %+v (configuration %d), %v", i, got, m.config, err)
			}
		}
		for _, i := range []uint64{1, 150, 401} {
			if err := l.GetLog(i, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
				t.Errorf("entry %d: %v", i, err)
			}
		}
		if v, err := l.GetUint64([]byte("CurrentTerm")); v != 7 || err != nil {
			t.Errorf("the term is %d, %v", v, err)
		}
		if v, err := l.Get([]byte("LastVoteCand")); string(v) != "b" || err != nil {
			t.Errorf("the vote is for %q, %v", v, err)
		}
	}
	check(l)
	if _, err := openDiskLog(dir, testKEK(t)); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	closeLog(t, l)
	l = openTestLog(t, dir)
	check(l)
	if len(l.audit.bad) != 0 || l.audit.last != 400 {
		t.Errorf("a whole log is found to be %+v", l.audit)
	}
	// After all entries are gone the log may begin anywhere.
	if err := l.DeleteRange(151, 400); err != nil {
		t.Fatal(err)
	}
	fill(t, l, 900, 1000)
	closeLog(t, l)
	l = openTestLog(t, dir)
	if len(l.audit.bad) != 0 || l.audit.first != 900 || l.audit.last != 1000 {
		t.Errorf("it was found to be %+v", l.audit)
	}
	closeLog(t, l)

	other, err := seal.NewKEK(bytes.Repeat([]byte{9}, seal.KEKBytes))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDiskLog(dir, other); !errors.Is(err, seal.ErrWrongKey) || strings.Contains(err.Error(), remedyRejoin) {
		t.Errorf("under another mesh key: %v", err)
	}
	for _, name := range append(voteFiles[:], logFile) {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || bytes.Contains(b, []byte("a key name")) {
			t.Errorf("%s holds entries in clear (%v)", name, err)
		}
	}
}

// flipByte changes bits of one byte of a file, and returns what changes them back.
func flipByte(t testing.TB, path string, at int, bits byte) (undo func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, int64(at)); err == nil {
		b[0] ^= bits
		_, err = f.WriteAt(b, int64(at))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() { flipByte(t, path, at, bits) }
}

// A flipped bit in either copy of term and vote is mended from the other; in both it is refused, never guessed.
func TestVoteFileDamage(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	if err := errors.Join(l.SetUint64(termKey, 5), l.Set([]byte("LastVoteCand"), []byte("c"))); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	paths := [2]string{filepath.Join(dir, voteFiles[0]), filepath.Join(dir, voteFiles[1])}
	whole, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if other, err := os.ReadFile(paths[1]); err != nil || !bytes.Equal(whole, other) {
		t.Fatalf("the copies differ: %v", err)
	}
	mended := 0
	for at := 0; at < 400; at++ {
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1 << (at % 8)
		if err := os.WriteFile(paths[at%2], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		l := openTestLog(t, dir)
		if v, err := l.GetUint64(termKey); v != 5 || err != nil {
			t.Fatalf("byte %d: the term is %d, %v", at, v, err)
		}
		if l.recovered != "" {
			mended++
		}
		closeLog(t, l)
		a, err1 := os.ReadFile(paths[0])
		b, err2 := os.ReadFile(paths[1])
		if !bytes.Equal(a, b) || errors.Join(err1, err2) != nil {
			t.Fatalf("byte %d: the copies differ afterwards", at)
		}
	}
	if mended < 150 {
		t.Errorf("%d of 400 flips were noticed, the record has about 180 bytes", mended)
	}
	if err := os.Remove(paths[0]); err != nil {
		t.Fatal(err)
	}
	l = openTestLog(t, dir)
	if l.recovered == "" {
		t.Error("a missing copy was not noticed")
	}
	closeLog(t, l)
	for _, p := range paths {
		damaged := bytes.Clone(whole)
		damaged[100] ^= 1
		if err := os.WriteFile(p, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := openDiskLog(dir, testKEK(t)); !errors.Is(err, errVoteLost) || !strings.Contains(err.Error(), remedyRejoin) {
		t.Errorf("both copies damaged: %v", err)
	}
}

// brokenFile fails at the n-th operation, and tears what it writes then.
type brokenFile struct {
	voteFile
	left *int
}

func (f brokenFile) WriteAt(p []byte, off int64) (int, error) {
	if *f.left--; *f.left < 0 {
		n, _ := f.voteFile.WriteAt(p[:len(p)/20], off)
		return n, errors.New("broken")
	}
	return f.voteFile.WriteAt(p, off)
}

func (f brokenFile) Sync() error {
	if *f.left--; *f.left < 0 {
		return errors.New("broken")
	}
	return f.voteFile.Sync()
}

// Whenever the process ends during a vote, the old vote or the new one is there afterwards, and one that was acknowledged
// is.
func TestVoteCrash(t *testing.T) {
	for steps := range 5 {
		dir := t.TempDir()
		l := openTestLog(t, dir)
		if err := l.SetUint64(termKey, 1); err != nil {
			t.Fatal(err)
		}
		left := steps
		for i, f := range l.votes.files {
			l.votes.files[i] = brokenFile{f, &left}
		}
		err := l.SetUint64(termKey, 2)
		if (err == nil) != (steps == 4) {
			t.Errorf("after %d steps: %v", steps, err)
		}
		closeLog(t, l)
		l = openTestLog(t, dir)
		v, gerr := l.GetUint64(termKey)
		if gerr != nil || v != 1 && v != 2 || err == nil && v != 2 {
			t.Errorf("after %d steps the term is %d, %v; set: %v", steps, v, gerr, err)
		}
		closeLog(t, l)
	}
}
