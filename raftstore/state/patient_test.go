package state

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// fullDisk is a file system that can be full.
type fullDisk struct {
	vfs.FS
	full atomic.Bool
	sync atomic.Bool // fsyncs say so, and not writes
}

func newFullDisk() *fullDisk {
	d := &fullDisk{}
	d.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate:
			if d.full.Load() {
				return syscall.ENOSPC
			}
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if d.sync.Load() && strings.HasSuffix(op.Path, ".sst") {
				return syscall.ENOSPC
			}
		}
		return nil
	}))
	return d
}

// A full disk stops nothing but the flushes, until the memtables are full; then Apply waits. When there is space again,
// everything goes on, and nothing was lost.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newFullDisk()
		var met atomic.Int64
		s, err := Open("state", Options{FS: disk, CacheBytes: 1 << 20, Full: func() { met.Add(1) }, Failed: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		f := &fixture{State: s, t: t, next: 1}
		f.at(1, initOp())
		value := strings.Repeat("v", 60<<10)
		disk.full.Store(true)
		witnessed := make(chan error, 1)
		go func() { witnessed <- f.Witness(1, 1) }()
		synctest.Wait()
		var applied atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 1000 { // 60 MiB
				f.at(1, put("k", value))
				applied.Add(1)
			}
		}()
		time.Sleep(time.Minute)
		if n := applied.Load(); n < 200 || n == 1000 {
			t.Errorf("%d writes were applied on a full disk", n)
		}
		if n := met.Load(); n < 100 || n > 10_000 {
			t.Errorf("the full disk was met %d times in a minute", n)
		}
		if got := len(f.get(ns1, "k").Value); got != len(value) {
			t.Errorf("a reader gets %d bytes", got)
		}
		select {
		case err := <-witnessed:
			t.Errorf("a witness on a full disk: %v", err)
		default:
		}
		disk.full.Store(false)
		<-done
		if err := <-witnessed; err != nil {
			t.Error(err)
		}
		want := f.Applied()

		// An fsync that meets a full disk is not tried again: the file is written anew, with a pause.
		disk.sync.Store(true)
		before := met.Load()
		f.at(1, put("k", "last"))
		go func() { witnessed <- f.Witness(want.Index+1, 1) }()
		time.Sleep(10 * time.Second)
		if n := met.Load() - before; n < 20 || n > 200 {
			t.Errorf("%d fsyncs failed in ten seconds", n)
		}
		disk.sync.Store(false)
		if err := <-witnessed; err != nil {
			t.Error(err)
		}
		// Closing does not wait for space.
		disk.full.Store(true)
		f.at(1, put("k", "lost"))
		go func() { witnessed <- f.Witness(want.Index+2, 1) }()
		time.Sleep(time.Second)
		begin := time.Now()
		if err := s.Close(); time.Since(begin) > 2*closeFlush {
			t.Errorf("closing took %v: %v", time.Since(begin), err)
		}
		if err := <-witnessed; !errors.Is(err, ErrClosed) {
			t.Errorf("the witness: %v", err)
		}
		disk.full.Store(false)
		f = openOn(t, disk)
		if got := string(f.get(ns1, "k").Value); got != "last" && got != "lost" {
			t.Errorf("after the reopening: %d bytes", len(got))
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}
