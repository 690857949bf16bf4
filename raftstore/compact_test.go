package raftstore

import (
	"math"
	"testing"
	"time"

	"kvmesh/raftstore/command"
)

// testSettings are those of ProfileTest, changed.
func testSettings(t *testing.T, change func(*settings)) func(string, *Options) {
	t.Helper()
	return func(_ string, o *Options) {
		set, err := ProfileTest.settings()
		if err != nil {
			t.Error(err)
		}
		change(&set)
		o.settings = &set
	}
}

// The log stays within its bounds on every voter, whichever of the two is reached first: few large entries or many small
// ones, and nothing is lost behind the cut.
func TestLogIsBounded(t *testing.T) {
	for name, test := range map[string]struct {
		set     func(*settings)
		value   int
		writes  int
		bytes   int64  // the most that may lie in the log
		entries uint64 // of them
	}{
		"by bytes": {
			func(s *settings) {
				s.snapshotBytes, s.snapshotEntries = 1<<20, math.MaxUint32
				s.trailingBytes, s.trailingEntries = 512<<10, math.MaxUint32
			}, 4 << 10, 1000, 1<<20 + 512<<10 + (meterChunk+50)*(5<<10), math.MaxUint32,
		},
		"by entries": {
			func(s *settings) {
				s.snapshotBytes, s.snapshotEntries = math.MaxInt64, 200
				s.trailingBytes, s.trailingEntries = math.MaxInt64, 100
			}, 10, 2000, math.MaxInt64, 300 + meterChunk,
		},
		"kept by bytes, cut by entries": {
			func(s *settings) {
				s.snapshotBytes, s.snapshotEntries = math.MaxInt64, 100
				s.trailingBytes, s.trailingEntries = 256<<10, math.MaxUint32
			}, 4 << 10, 600, 256<<10 + (100+meterChunk+50)*(5<<10), math.MaxUint32,
		},
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T) {
				c := newCluster(t, "a", "b", "c")
				c.adapt = testSettings(t, test.set)
				lead := c.start().leader()
				value := string(make([]byte, test.value))
				var peak int64
				for i := range test.writes {
					res := c.mustPut(lead, key(i), value)
					if i%50 == 0 {
						c.converge(res.Revision)
						time.Sleep(100 * time.Millisecond) // what is due is done
					}
					peak = max(peak, lead.log.meter.bytes())
				}
				time.Sleep(time.Second)
				if peak > test.bytes {
					t.Errorf("%d bytes lay in the log, at most %d should", peak, test.bytes)
				}
				for id, s := range c.nodes {
					first, err := s.log.FirstIndex()
					if err != nil {
						t.Fatal(err)
					}
					last, err := s.log.LastIndex()
					if err != nil {
						t.Fatal(err)
					}
					if n := last - first + 1; n > test.entries || first < 2 {
						t.Errorf("%s: %d entries from %d on", id, n, first)
					}
					if s.snaps.newestIndex() < first-1 {
						t.Errorf("%s: the log begins at %d, the newest snapshot is at %d", id, first, s.snaps.newestIndex())
					}
				}
				// Everybody starts again from what is left.
				for id := range c.dirs {
					c.stop(id)
				}
				for id := range c.dirs {
					c.open(id)
				}
				lead = c.leader()
				for i := range test.writes {
					if got := c.get(lead, key(i)); got != value {
						t.Fatalf("%s is lost behind the cut", key(i))
					}
				}
			})
		})
	}
}

// While a checkpoint is on its way the log behind it is kept, but not for ever.
func TestCompactionWaitsForCheckpoints(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		c.adapt = testSettings(t, func(s *settings) { s.snapshotBytes, s.snapshotEntries = math.MaxInt64, 100 })
		s := c.start().leader()
		s.snaps.mu.Lock()
		s.snaps.sending++
		s.snaps.mu.Unlock()
		for i := range 390 {
			c.mustPut(s, key(i), "v")
		}
		time.Sleep(time.Second)
		if n := s.snaps.newestIndex(); n != 0 {
			t.Errorf("a snapshot at %d while a checkpoint was being sent", n)
		}
		for i := range 30 {
			c.mustPut(s, key(i), "v")
		}
		time.Sleep(time.Second)
		first := s.snaps.newestIndex()
		if first == 0 {
			t.Error("a checkpoint that does not arrive holds the log for ever")
		}
		s.snaps.mu.Lock()
		s.snaps.sending--
		s.snaps.mu.Unlock()
		for i := range 150 {
			c.mustPut(s, key(i), "v")
		}
		time.Sleep(time.Second)
		if s.snaps.newestIndex() <= first {
			t.Error("no snapshot after the checkpoint has gone")
		}
	})
}

// An idle mesh writes no entries, and what expires is swept right after it has expired, in steps.
func TestSweepsWhenSomethingExpires(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a").start()
		s := c.leader()
		const keys = 3*sweepKeys + 10
		expiry := time.Now().Unix() + 600
		var ops []command.Op
		for i := range keys {
			op := c.put(key(i), "v")
			op.Expiry = expiry
			if ops = append(ops, op); len(ops) == 500 || i == keys-1 {
				if _, err := s.Propose(t.Context(), ops); err != nil {
					t.Fatal(err)
				}
				ops = nil
			}
		}
		c.mustPut(s, "kept", "v")
		last := s.Status().LastIndex
		time.Sleep(time.Until(time.Unix(expiry, 0)) - time.Millisecond)
		if now := s.Status().LastIndex; now != last {
			t.Errorf("%d entries were written while nothing expired", now-last)
		}
		stats, err := s.State().NamespaceStats(c.ns)
		if err != nil || stats.Keys != keys+1 {
			t.Errorf("before the expiry: %+v %v", stats, err)
		}
		time.Sleep(2 * s.set.duty)
		if stats, err = s.State().NamespaceStats(c.ns); err != nil || stats.Keys != 1 || stats.Bytes != int64(len("kept")+1) {
			t.Errorf("after the expiry: %+v %v", stats, err)
		}
		if now := s.Status().LastIndex; now-last != 4 {
			t.Errorf("%d entries swept %d keys", now-last, keys)
		}
		last = s.Status().LastIndex
		time.Sleep(time.Hour)
		if now := s.Status().LastIndex; now != last {
			t.Errorf("%d entries were written in an idle hour", now-last)
		}
	})
}
