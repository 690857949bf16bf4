//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What strace writes of calls that were made to fail or wait, as it was seen to.
func TestTracerFindsTheFirst(t *testing.T) {
	for name, test := range map[string]struct {
		lines string
		at    float64 // of the first; 0: none
	}{
		"nothing": {"", 0},
		"untouched": {
			"20 100.500000 fsync(3)        = 0\n20 101.000000 +++ exited with 0 +++\n", 0,
		},
		"failed": {
			"20 100.500000 fsync(3)        = 0\n20 101.000000 fsync(3) = -1 EIO (Input/output error) (INJECTED)\n", 101,
		},
		"a small thread id": {
			"2897  101.000000 fdatasync(16)   = 0 (DELAYED)\n", 101,
		},
		"waited": {
			"20 101.000000 fsync(3)        = 0 (DELAYED)\n", 101,
		},
		"the process ended meanwhile": {
			"20 101.000000 fsync(3)        = ?\n20 109.000000 +++ exited with 1 +++\n19 109.000000 +++ exited with 1 +++\n", 101,
		},
		"and another thread was told of in between": {
			"20 101.000000 fsync(3 <unfinished ...>\n21 102.000000 fdatasync(4 <unfinished ...>\n" +
				"20 109.000000 <... fsync resumed>) = ?\n20 109.000000 +++ exited with 1 +++\n", 101,
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := &tracer{out: filepath.Join(t.TempDir(), "strace")}
			if err := os.WriteFile(tr.out, []byte(test.lines), 0o600); err != nil {
				t.Fatal(err)
			}
			at, ok := tr.first()
			if ok != (test.at != 0) || ok && !at.Equal(time.UnixMicro(int64(test.at*1e6))) {
				t.Errorf("first at %v, %v", at, ok)
			}
		})
	}
}
