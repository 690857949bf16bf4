package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/hashicorp/raft"
)

// auditOf audits the bytes of a log's file.
func auditOf(l *diskLog, file []byte) (logAudit, error) {
	note, err := readLogNote(l.votes)
	if err != nil {
		return logAudit{}, err
	}
	a := &auditor{log: &sealedLog{key: l.key}}
	_, err = a.read(bytes.NewReader(file), note)
	return a.audit, err
}

// Every flipped bit in a part of the log's file that is in use is found, and none elsewhere is taken for one. What is read
// back beside a damaged entry is right.
func TestLogFileDamage(t *testing.T) {
	for _, entries := range []uint64{0, 1, 3, 40} { // up to three in the page of the buckets, the others in a tree of pages
		t.Run(fmt.Sprint(entries), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, logFile)
			l := openTestLog(t, dir)
			fill(t, l, 1, entries)
			closeLog(t, l)
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := readBolt(bytes.NewReader(file), func(_, _ []byte) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			used := whole.used
			if entries == 40 && len(used) < 6 {
				t.Fatalf("%d pages are in use: no tree", len(used))
			}
			structure, inEntries, free := 0, 0, 0
			flip := func(at int, bits byte, inUse bool) {
				file[at] ^= bits
				defer func() { file[at] ^= bits }()
				got, err := auditOf(l, file)
				switch found := err != nil || len(got.bad) > 0; {
				case err != nil && !errors.Is(err, errStructure):
					t.Fatalf("byte %d ^ %#x: %v", at, bits, err)
				case found != inUse:
					t.Fatalf("byte %d ^ %#x of a page in use (%v): %+v, %v", at, bits, inUse, got, err)
				case !found:
					if free++; got.first != min(entries, 1) || got.last != entries {
						t.Fatalf("byte %d ^ %#x: %+v", at, bits, got)
					}
				case err != nil:
					structure++
				default:
					if inEntries++; inEntries%400 == 0 { // opening takes its time
						rightBeside(t, dir, entries, at, bits, got)
					}
				}
			}
			rng := rand.New(rand.NewPCG(1, entries))
			size := os.Getpagesize()
			for page := range len(file) / size {
				if _, inUse := used[uint64(page)]; !inUse {
					if page < 64 {
						flip(page*size+rng.IntN(size), 1<<rng.IntN(8), false)
					}
					continue
				}
				for at := page * size; at < (page+1)*size; at++ {
					flip(at, 1<<(at%8), true)
					if at%size < 160 { // heads and elements
						for bit := range 8 {
							flip(at, 1<<bit, true)
						}
					}
				}
				kept := bytes.Clone(file[page*size:][:size]) // a page that was never written
				clear(file[page*size:][:size])
				if _, err := auditOf(l, file); !errors.Is(err, errStructure) {
					t.Errorf("page %d of zeros: %v", page, err)
				}
				copy(file[page*size:], kept)
			}
			t.Logf("%d pages in use: %d changes found in the structure, %d in entries; %d harmless elsewhere", len(used), structure, inEntries, free)
			last := 0
			for page := range used {
				last = max(last, int(page))
			}
			for _, n := range []int{0, 1, size, 2*size - 1, last * size, (last+1)*size - 1} {
				if _, err := auditOf(l, file[:n]); !errors.Is(err, errStructure) {
					t.Errorf("cut to %d bytes: %v", n, err)
				}
			}
		})
	}
}

// rightBeside opens a log in which one byte is flipped, and reads it.
func rightBeside(t *testing.T, dir string, entries uint64, at int, bits byte, found logAudit) {
	t.Helper()
	unflip := flipByte(t, filepath.Join(dir, logFile), at, bits)
	defer unflip()
	l := openTestLog(t, dir)
	defer closeLog(t, l)
	for i := uint64(1); i <= entries; i++ {
		bad := false
		for _, s := range found.bad {
			bad = bad || s.lo <= i && i <= s.hi
		}
		var got raft.Log
		err := l.GetLog(i, &got)
		switch refused := errors.Is(err, errDamagedEntry) || errors.Is(err, raft.ErrLogNotFound); {
		case bad && refused:
		case err != nil || !sameEntry(&got, testEntry(i)): // a damaged one may well have everything that counts
			t.Fatalf("byte %d: entry %d is %+v, %v", at, i, got, err)
		}
	}
}

// Whatever is done to a log, its file is never taken for a damaged one: entries of all sizes, ends that are cut off and
// written anew, beginnings that are cut away, all of it gone.
func TestWholeLogIsFoundWhole(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	rng := rand.New(rand.NewPCG(3, 4))
	var first, next uint64 = 1, 1
	check := func(what string) {
		t.Helper()
		got, _, err := (&sealedLog{key: l.key, notes: l.votes}).inspect(filepath.Join(dir, logFile))
		want := logAudit{first: first, last: next - 1}
		if first == next {
			want = logAudit{}
		}
		if err != nil || got.first != want.first || got.last != want.last || len(got.bad) > 0 {
			t.Fatalf("%s: entries %d to %d are found to be %+v, %v", what, first, next-1, got, err)
		}
	}
	for step := range 250 {
		if step%50 == 49 {
			closeLog(t, l)
			l = openTestLog(t, dir)
		}
		held := next - first
		switch n := rng.IntN(20); {
		case n < 14:
			var logs []*raft.Log
			most := []int{40, 400, 5000, 300 << 10}[rng.IntN(4)]
			for range 1 + rng.IntN(max(1, 60000/most)) {
				logs = append(logs, &raft.Log{Index: next, Term: 1, Data: make([]byte, rng.IntN(most))})
				next++
			}
			if err := l.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
			check("append")
		case n < 16 && held > 0: // the beginning, a part of it or all but one
			hi := first + rng.Uint64N(held)
			if err := l.DeleteRange(first, hi); err != nil {
				t.Fatal(err)
			}
			if first = hi + 1; first == next && rng.IntN(2) == 0 { // an empty log may go on anywhere
				first, next = next+1000, next+1000
			}
			check("cut at the beginning")
		case n < 18 && held > 0:
			lo := next - 1 - rng.Uint64N(min(held, 20))
			if err := l.DeleteRange(lo, next-1); err != nil {
				t.Fatal(err)
			}
			next = lo
			check("cut at the end")
		case n < 19:
			if err := l.DeleteRange(next, next+10); err != nil { // nothing is there
				t.Fatal(err)
			}
			check("nothing is cut")
		}
	}
	closeLog(t, l)
}

// A write that failed for want of space is only said to have left nothing behind when that is so.
func TestFullDiskWroteNothing(t *testing.T) {
	l := openTestLog(t, t.TempDir())
	defer closeLog(t, l)
	fill(t, l, 1, 5)
	entry := []*raft.Log{{Index: 6, Term: 1, Data: []byte("x")}}
	for name, tc := range map[string]struct {
		err      error
		written  bool
		mayRetry bool
	}{
		"full":                      {fmt.Errorf("write raft.db: %w", syscall.ENOSPC), false, true},
		"told by its text only":     {errors.New("file resize error: truncate raft.db: " + syscall.ENOSPC.Error()), false, true},
		"a quota is used up":        {errors.New("mmap allocate error: " + syscall.EDQUOT.Error()), false, true},
		"full after it was written": {fmt.Errorf("sync raft.db: %w", syscall.ENOSPC), true, false},
		"broken":                    {fmt.Errorf("sync raft.db: %w", syscall.EIO), false, false},
	} {
		newest, err := l.bolt.transaction()
		if err != nil {
			t.Fatal(err)
		}
		if tc.written {
			if err := l.bolt.StoreLogs(newest+1, entry); err != nil {
				t.Fatal(err)
			}
		}
		err = l.bolt.written(newest+1, tc.err)
		if err == nil || isFull(err) != tc.mayRetry {
			t.Errorf("%s: %v, and it may be tried again: %v", name, err, isFull(err))
		}
	}
}

// Whenever the process ends while entries are deleted, or while the file is opened, the next start finds a whole log.
func TestLogCutIsInterrupted(t *testing.T) {
	for name, cut := range map[string]span{"beginning": {1, 15}, "end": {30, 40}, "all": {1, 40}} {
		for _, happened := range []bool{false, true} {
			dir := t.TempDir()
			l := openTestLog(t, dir)
			fill(t, l, 1, 40)
			after, err := l.held.without(cut.lo, cut.hi)
			if err != nil {
				t.Fatal(err)
			}
			newest, err := l.bolt.transaction()
			if err != nil {
				t.Fatal(err)
			}
			if err := (logNote{tx: newest, before: l.held, after: after}).write(l.votes); err != nil {
				t.Fatal(err)
			}
			want := l.held
			if happened {
				want = after
				if err := l.bolt.DeleteRange(newest+1, cut.lo, cut.hi); err != nil {
					t.Fatal(err)
				}
			}
			closeLog(t, l)
			for range 3 { // starts that come no further
				l = openTestLog(t, dir)
				if l.held != want || len(l.audit.bad) > 0 {
					t.Errorf("%s, deleted %v: the log holds %+v, want %+v; %+v", name, happened, l.held, want, l.audit)
				}
				closeLog(t, l)
			}
			l = openTestLog(t, dir)
			fill(t, l, want.hi+1, want.hi+5)
			closeLog(t, l)
			l = openTestLog(t, dir)
			if l.held.hi != want.hi+5 || len(l.audit.bad) > 0 {
				t.Errorf("%s, deleted %v: afterwards it is %+v, %+v", name, happened, l.held, l.audit)
			}
			closeLog(t, l)
		}
	}
}

// What is well made and sealed, and is not what was written last, is found: an end that is gone, a beginning that is gone, an
// older file, an entry as it was before the end was replaced.
func TestOlderLogIsFound(t *testing.T) {
	lost := func(l *diskLog, lo, hi uint64) error { return l.bolt.store.DeleteRange(lo, hi) }
	for name, tc := range map[string]struct {
		hurt  func(l *diskLog, older *raft.Log) error
		found string
	}{
		"no harm":          {func(*diskLog, *raft.Log) error { return nil }, ""},
		"the end":          {func(l *diskLog, _ *raft.Log) error { return lost(l, 40, 40) }, "structure"},
		"the beginning":    {func(l *diskLog, _ *raft.Log) error { return lost(l, 1, 20) }, "structure"},
		"everything":       {func(l *diskLog, _ *raft.Log) error { return lost(l, 1, 40) }, "structure"},
		"an older version": {func(l *diskLog, older *raft.Log) error { return l.bolt.store.StoreLog(older) }, "entry"},
	} {
		dir := t.TempDir()
		l := openTestLog(t, dir)
		fill(t, l, 1, 30)
		var older raft.Log
		if err := errors.Join(l.bolt.GetLog(25, &older), l.DeleteRange(25, 30)); err != nil {
			t.Fatal(err)
		}
		fill(t, l, 25, 40)
		newest, err := l.bolt.transaction()
		if err == nil {
			err = tc.hurt(l, &older)
		}
		if err != nil {
			t.Fatal(err)
		}
		if tc.found == "entry" { // the transaction that did it is accounted for
			if err := (logNote{tx: newest, before: l.held, after: l.held}).write(l.votes); err != nil {
				t.Fatal(err)
			}
		}
		closeLog(t, l)
		l, err = openDiskLog(dir, testKEK(t))
		switch {
		case tc.found == "structure":
			if !errors.Is(err, errStructure) {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case (tc.found == "entry") != (len(l.audit.bad) == 1 && l.audit.bad[0] == span{25, 25}):
			t.Errorf("%s: %+v", name, l.audit)
		}
		if err == nil {
			closeLog(t, l)
		}
	}
}

// A log that goes on behind a checkpoint, beyond its end, has no hole in it.
func TestLogGoesOnBehindCheckpoint(t *testing.T) {
	dir := t.TempDir()
	l := openTestLog(t, dir)
	fill(t, l, 1, 10)
	fill(t, l, 500, 510)
	if err := l.StoreLog(testEntry(505)); err == nil {
		t.Error("an entry was written twice")
	}
	if err := l.DeleteRange(503, 504); err == nil {
		t.Error("a hole was made")
	}
	closeLog(t, l)
	l = openTestLog(t, dir)
	if l.held != (span{500, 510}) || len(l.audit.bad) > 0 {
		t.Errorf("%+v, %+v", l.held, l.audit)
	}
	closeLog(t, l)
}
