package raftstore

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// stallLog is a log whose appends can be made to hang, like a disk's, and which counts commands.
type stallLog struct {
	Log
	mu       sync.Mutex // guards all below
	gate     chan struct{}
	commands int
	largest  int // bytes of one append
	fail     error
}

func (l *stallLog) StoreLogs(logs []*raft.Log) error {
	l.mu.Lock()
	gate, fail := l.gate, l.fail
	bytes := 0
	for _, e := range logs {
		bytes += len(e.Data)
		l.largest = max(l.largest, bytes)
		if e.Type == raft.LogCommand {
			l.commands++
		}
	}
	l.mu.Unlock()
	if gate != nil {
		<-gate
	}
	if fail != nil {
		return fail
	}
	return l.Log.StoreLogs(logs)
}

func (l *stallLog) stall() (release func()) {
	gate := make(chan struct{})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = gate
	return func() {
		l.mu.Lock()
		l.gate = nil
		l.mu.Unlock()
		close(gate)
	}
}

func (l *stallLog) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commands
}

// startStalling starts a single voter on a stallLog.
func startStalling(t *testing.T) (*cluster, *Store, *stallLog) {
	c := newCluster(t, "a")
	slow := new(stallLog)
	c.adapt = func(_ string, o *Options) {
		memory := o.LogStore
		o.LogStore = func(dir string) (Log, error) {
			var err error
			slow.Log, err = memory(dir)
			return slow, err
		}
		set, err := ProfileTest.settings()
		set.duty = time.Hour // no entries of the leader's own
		o.settings = &set
		if err != nil {
			t.Error(err)
		}
	}
	s := c.start().leader()
	synctest.Wait()
	return c, s, slow
}

func TestCombinerPacks(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c, s, slow := startStalling(t)
		before := slow.count()
		c.mustPut(s, "lone", "v")
		if n := slow.count() - before; n != 1 {
			t.Errorf("a lone write took %d entries", n)
		}

		release := slow.stall()
		before = slow.count()
		const calls, perCall = 900, 2
		results := make([]command.Result, calls)
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				var err error
				results[i], err = s.Propose(t.Context(), []command.Op{c.put(key(i), "first"), c.put(key(i), key(i))})
				if err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if n := slow.count() - before; n != 1 {
			t.Errorf("%d entries were handed over while the first was being written", n)
		}
		release()
		wg.Wait()
		// The first call alone, then as many as fit by count (512 calls of two) and by bytes.
		if n := slow.count() - before; n < 3 || n > 4 {
			t.Errorf("%d calls took %d entries", calls, n)
		}
		for i, r := range results {
			if len(r.Ops) != perCall || r.Ops[1].Revision != r.Ops[0].Revision+1 || r.Ops[1].AsOf < r.Ops[1].Revision {
				t.Fatalf("call %d: %+v", i, r)
			}
			item, _, err := s.State().Get(c.ns, key(i), false)
			if err != nil || item.Revision != r.Ops[1].Revision || string(item.Value) != key(i) {
				t.Fatalf("call %d got another's result: %+v, %+v", i, r, item)
			}
		}
	})
}

// An entry on its way keeps the next one waiting until it is applied, or for entryPace: whatever comes meanwhile shares it.
func TestCombinerPaces(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		c.adapt = func(_ string, o *Options) {
			set, err := ProfileTestPatient.settings()
			if err != nil {
				t.Error(err)
			}
			set.duty = time.Hour // no entries of the leader's own
			o.settings = &set
		}
		s := c.start().leader()
		var release []func()
		for _, id := range []string{"a", "b", "c"} {
			if id != s.opts.NodeID {
				release = append(release, c.net.hold(id, s.opts.NodeID, s.opts.NodeID))
			}
		}
		synctest.Wait()
		before := s.Status().LastIndex
		entries := func(want uint64) {
			t.Helper()
			synctest.Wait()
			if n := s.Status().LastIndex - before; n != want {
				t.Errorf("%d entries, want %d", n, want)
			}
		}
		var wg sync.WaitGroup
		write := func(name string) {
			wg.Go(func() {
				if _, err := s.Propose(t.Context(), []command.Op{c.put(name, "v")}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		write("at once")
		entries(1)
		for i := range 9 {
			write(key(i))
			time.Sleep(entryPace / 10)
			entries(1)
		}
		time.Sleep(entryPace / 10)
		entries(2) // the first is not committed yet, and all that came since are in one
		many := make([]command.Op, kv.MaxBatchOps/2+1)
		for i := range many {
			many[i] = c.put(key(i), "v")
		}
		for range 2 {
			wg.Go(func() {
				if _, err := s.Propose(t.Context(), many); err != nil {
					t.Error(err)
				}
			})
		}
		entries(3) // one of them: the other does not fit, so there is nothing to wait for
		at := s.mono()
		for _, r := range release {
			r()
		}
		wg.Wait()
		if took := s.mono() - at; took >= entryPace {
			t.Errorf("the last waited for %v more", took)
		}
		entries(4)
	})
}

func TestProposeLimits(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c, s, slow := startStalling(t)
		value := string(make([]byte, 60<<10))
		for name, ops := range map[string][]command.Op{
			"none":      nil,
			"too many":  make([]command.Op, kv.MaxBatchOps+1),
			"too large": {c.put("a", value), c.put("b", value), c.put("c", value), c.put("d", value), c.put("e", value)},
			"unknown":   {{Kind: 200}},
		} {
			if _, err := s.Propose(t.Context(), ops); !isCode(err, kv.CodeInvalidParameter) {
				t.Errorf("%s: %v", name, err)
			}
		}

		s.combiner.limit = 200 << 10
		release := slow.stall()
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if _, err := s.Propose(t.Context(), []command.Op{c.put(key(i), value)}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		_, err := s.Propose(t.Context(), []command.Op{c.put("more", value)})
		if e := new(kv.Error); !isCode(err, kv.CodeOverloaded) || !errors.As(err, &e) || e.RetryAfter <= 0 {
			t.Errorf("beyond the limit: %v", err)
		}
		release()
		wg.Wait()
		if n := s.Status().InFlightBytes; n != 0 {
			t.Errorf("%d bytes are still held", n)
		}
		c.mustPut(s, "more", value)
	})
}

// While the disk hangs the library answers nothing. Callers come back with their ctx all the same, and are told the truth.
func TestHangingDisk(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c, s, slow := startStalling(t)
		release := slow.stall()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		for _, want := range []kv.Code{kv.CodeOutcomeUnknown, kv.CodeDeadlineExceeded} {
			wg.Go(func() {
				if _, err := s.Propose(ctx, []command.Op{c.put(string(want), "v")}); !isCode(err, want) {
					t.Errorf("want %s: %v", want, err)
				}
			})
			synctest.Wait() // the first is with the disk now, the second waits its turn
		}
		wg.Wait()
		closing, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		if err := s.Close(closing); err == nil || time.Since(start) > 3*time.Second {
			t.Errorf("close took %v: %v", time.Since(start), err)
		}
		release() // the write that was unknown lands after all
		synctest.Wait()
		if err := s.state.Close(); err != nil {
			t.Error(err)
		}
		again := c.open("a")
		lead := c.leader()
		if lead != again || c.get(lead, string(kv.CodeOutcomeUnknown)) != "v" {
			t.Error("the unknown write did not land")
		}
		if item, _, err := lead.State().Get(c.ns, string(kv.CodeDeadlineExceeded), true); err != nil || !item.Absent {
			t.Errorf("the refused write landed: %+v %v", item, err)
		}
	})
}

func TestLogErrors(t *testing.T) {
	for _, test := range []struct {
		err   error
		fatal bool
		code  kv.Code
	}{{syscall.EIO, true, kv.CodeOutcomeUnknown}, {syscall.ENOSPC, false, kv.CodeDiskFull}} {
		virtual(t, func(t *testing.T) {
			c, s, slow := startStalling(t)
			var fatal error
			s.opts.Fatal = func(err error) { fatal = err }
			slow.mu.Lock()
			slow.fail = test.err
			slow.mu.Unlock()
			if _, err := s.Propose(t.Context(), []command.Op{c.put("k", "v")}); !isCode(err, test.code) {
				t.Errorf("%v: outcome %v", test.err, err)
			}
			if errors.Is(fatal, test.err) != test.fatal {
				t.Errorf("%v: fatal %v", test.err, fatal)
			}
			slow.mu.Lock()
			slow.fail = nil
			slow.mu.Unlock()
			if !test.fatal {
				if item, _, err := s.State().Get(c.ns, "k", true); err != nil || !item.Absent {
					t.Errorf("what was refused is there: %+v, %v", item, err)
				}
				time.Sleep(fullFor + spacePoll)
				c.mustPut(c.leader(), "k", "v") // it heals alone
			}
		})
	}
}

// A follower that is behind by many large entries gets them in requests that are bounded by bytes.
func TestCatchUpByLargeEntries(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		logs := make(map[string]*stallLog)
		c.adapt = func(id string, o *Options) {
			o.Profile = ProfileLAN
			o.LogStore = func(dir string) (Log, error) {
				memory, err := c.logs(dir)
				logs[id] = &stallLog{Log: memory}
				return logs[id], err
			}
		}
		behind := c.start().follower().opts.NodeID
		c.stop(behind)
		lead := c.leader()
		var last kv.Revision
		value := string(make([]byte, 60<<10))
		for i := range 30 {
			ops := []command.Op{c.put(key(i), value), c.put(key(i), value), c.put(key(i), value), c.put(key(i), value)}
			res, err := lead.Propose(t.Context(), ops)
			if err != nil {
				t.Fatal(err)
			}
			last = res.Revision
		}
		c.open(behind)
		c.converge(last)
		if got := logs[behind].largest; got > maxAppendBytes || got < maxAppendBytes/2 {
			t.Errorf("%d bytes came at once", got)
		}
	})
}

// The truth about an entry depends on whether its append had begun, not on the name of the error.
func TestClassify(t *testing.T) {
	virtual(t, func(t *testing.T) {
		_, s, _ := startStalling(t)
		for _, err := range []error{
			raft.ErrNotLeader, raft.ErrLeadershipLost, raft.ErrRaftShutdown, raft.ErrEnqueueTimeout,
			raft.ErrLeadershipTransferInProgress, raft.ErrAbortedByRestore, errors.New("disk"),
		} {
			if got := s.combiner.classify(err, true); !isCode(got, kv.CodeOutcomeUnknown) {
				t.Errorf("%v after the append had begun: %v", err, got)
			}
			if got := s.combiner.classify(err, false); !isCode(got, kv.CodeNoLeader, kv.CodeNotLeader, kv.CodeUnavailable) {
				t.Errorf("%v before: %v", err, got)
			}
		}
	})
}
