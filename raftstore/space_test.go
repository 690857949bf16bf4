package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// smallDisk is a voter's disk: how much of it is said to be free, and whether writes meet a full one.
type smallDisk struct {
	Log
	free atomic.Uint64
	full atomic.Bool // the log cannot be appended to
	vote atomic.Bool // and term and vote cannot be saved either
}

const diskTotal = 1 << 30 // writes are refused below 64 MiB

func (d *smallDisk) space(string) (uint64, uint64, error) { return d.free.Load(), diskTotal, nil }

func (d *smallDisk) StoreLogs(logs []*raft.Log) error {
	if d.full.Load() {
		return syscall.ENOSPC
	}
	return d.Log.StoreLogs(logs)
}

func (d *smallDisk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *smallDisk) SetUint64(k []byte, v uint64) error {
	if d.vote.Load() {
		return syscall.ENOSPC
	}
	return d.Log.SetUint64(k, v)
}

func (d *smallDisk) Set(k, v []byte) error {
	if d.vote.Load() {
		return syscall.ENOSPC
	}
	return d.Log.Set(k, v)
}

type smallDisks struct {
	*cluster
	disks map[string]*smallDisk
	mu    sync.Mutex // guards the cluster's nodes
}

func newSmallDisks(t *testing.T) *smallDisks {
	d := &smallDisks{cluster: newCluster(t, "a", "b", "c"), disks: map[string]*smallDisk{}}
	d.adapt = func(id string, o *Options) {
		disk := d.disks[id]
		if disk == nil {
			disk = new(smallDisk)
			disk.free.Store(diskTotal / 2)
			d.disks[id] = disk
		}
		o.Profile, o.Space = ProfileLAN, disk.space
		o.LogStore = func(dir string) (Log, error) {
			var err error
			disk.Log, err = d.logs(dir)
			return disk, err
		}
	}
	d.start()
	// What the node does: the leader asks every member about every second.
	ctx, cancel := context.WithCancel(context.Background())
	var asking sync.WaitGroup
	asking.Go(func() {
		for ctx.Err() == nil {
			d.mu.Lock()
			for _, from := range d.nodes {
				for _, to := range d.nodes {
					to.Heard(from.opts.NodeID, from.Info())
				}
			}
			d.mu.Unlock()
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() { cancel(); asking.Wait() })
	return d
}

// try proposes once.
func (d *smallDisks) try(s *Store) error {
	ctx, cancel := context.WithTimeout(d.t.Context(), 5*time.Second)
	defer cancel()
	_, err := s.Propose(ctx, []command.Op{d.put("k", "v")})
	return err
}

// writable waits until somebody takes a write, and returns how long that took.
func (d *smallDisks) writable() time.Duration {
	d.t.Helper()
	start := time.Now()
	for time.Since(start) < time.Minute {
		d.mu.Lock()
		nodes := d.nodes
		d.mu.Unlock()
		for _, s := range nodes {
			if _, self := s.Leader(); self && d.try(s) == nil {
				return time.Since(start)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	d.t.Fatal("no writes for a minute")
	return 0
}

// A leader whose disk fills up gives its leadership to a voter with room.
func TestFullLeaderHandsOver(t *testing.T) {
	virtual(t, func(t *testing.T) {
		d := newSmallDisks(t)
		old := d.leader()
		time.Sleep(2 * time.Second)
		d.disks[old.opts.NodeID].free.Store(maxSpace - 1)
		time.Sleep(spacePoll + time.Second)
		lead := d.leader(old.opts.NodeID)
		if took := d.writable(); took > 2*time.Second {
			t.Errorf("no writes for %v", took)
		}
		d.converge(lead.State().Applied().Revision) // its log still has room for what the others write
		if _, err := os.Stat(filepath.Join(d.dirs[old.opts.NodeID], ballastFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the ballast of a full disk: %v", err)
		}
		if _, err := os.Stat(filepath.Join(d.dirs[lead.opts.NodeID], ballastFile)); err != nil {
			t.Errorf("the ballast of a disk with room: %v", err)
		}
		if old.Writable() == nil || lead.Writable() != nil {
			t.Errorf("full: %v, with room: %v", old.Writable(), lead.Writable())
		}
	})
}

// Writes are refused, as certain not to have happened, when a majority has no room; strong reads go on, and writes come
// back by themselves.
func TestFullMajority(t *testing.T) {
	virtual(t, func(t *testing.T) {
		for _, all := range []bool{false, true} {
			d := newSmallDisks(t)
			lead := d.leader()
			time.Sleep(2 * time.Second)
			for id, disk := range d.disks {
				if all || id != lead.opts.NodeID {
					disk.free.Store(1 << 20)
				}
			}
			time.Sleep(2*spacePoll + time.Second)
			for range 30 {
				err := d.try(d.leader())
				if e := new(kv.Error); !isCode(err, kv.CodeDiskFull) || !errors.As(err, &e) || e.RetryAfter <= 0 {
					t.Fatalf("all full %v: %v", all, err)
				}
				if _, err := d.leader().Confirm(t.Context()); err != nil {
					t.Fatalf("all full %v: a strong read: %v", all, err)
				}
				time.Sleep(time.Second)
			}
			if d.leader() != lead {
				t.Errorf("all full %v: the leadership has moved", all)
			}
			for _, disk := range d.disks {
				disk.free.Store(diskTotal / 2)
			}
			if took := d.writable(); took > 5*time.Second {
				t.Errorf("all full %v: writable %v after there was space", all, took)
			}
		}
	})
}

// A follower whose disk is full in fact does not stop the others, catches up when there is space, and neither it nor a
// candidate that cannot save its term ends its process.
func TestFullFollower(t *testing.T) {
	virtual(t, func(t *testing.T) {
		d := newSmallDisks(t)
		lead := d.leader()
		var full string
		for id := range d.disks {
			if id != lead.opts.NodeID {
				full = id
			}
		}
		d.disks[full].full.Store(true)
		d.disks[full].vote.Store(true)
		var last kv.Revision
		for i := range 100 {
			last = d.mustPut(lead, key(i), "v").Revision
			time.Sleep(100 * time.Millisecond)
		}
		// Now the leader goes: the two that are left need the vote of the full one, which cannot be saved.
		d.mu.Lock()
		d.stop(lead.opts.NodeID)
		d.mu.Unlock()
		time.Sleep(20 * time.Second)
		for id, s := range d.nodes {
			if _, self := s.Leader(); self {
				t.Errorf("%s leads without a vote that was saved", id)
			}
		}
		d.disks[full].full.Store(false)
		d.disks[full].vote.Store(false)
		if took := d.writable(); took > 5*time.Second {
			t.Errorf("writable %v after there was space", took)
		}
		d.converge(last)
	})
}

// Entries of a former leader are deleted, and those in their place meet a full disk: the library would forget where its log
// ends, so the log waits.
func TestFullWhileReplacing(t *testing.T) {
	virtual(t, func(t *testing.T) {
		d := newSmallDisks(t)
		old := d.leader()
		id := old.opts.NodeID
		d.mustPut(old, "before", "v")
		d.net.isolate(id)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		for range 3 { // entries that nobody else has
			if _, err := old.Propose(ctx, []command.Op{d.put("lost", "v")}); err == nil {
				t.Error("a write without a quorum")
			}
		}
		lead := d.leader(id)
		for i := range 10 {
			d.mustPut(lead, key(i), "v")
		}
		d.disks[id].full.Store(true)
		d.net.join(id)
		time.Sleep(10 * time.Second)
		last := d.mustPut(lead, "meanwhile", "v").Revision
		d.disks[id].full.Store(false)
		d.converge(last)
		if item, _, err := old.State().Get(d.ns, "lost", true); err != nil || !item.Absent {
			t.Errorf("%+v %v", item, err)
		}
	})
}

// A new kind of command is held back until every member, also one without a vote, has said that it knows it.
func TestGate(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		known := map[string]command.Kind{"a": command.Highest, "b": command.Highest, "c": command.BaseKinds}
		c.adapt = func(id string, o *Options) {
			set, err := ProfileTest.settings()
			if err != nil {
				t.Error(err)
			}
			set.baseKinds, set.kinds = command.BaseKinds, known[id]
			o.settings = &set
		}
		lead := c.start().leader()
		if lead.opts.NodeID == "c" { // the one that knows less would allow nothing
			if err := lead.TransferLeadership(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			lead = c.leader("c")
		}
		hear := func(but string) {
			for id, s := range c.nodes {
				if id != but {
					lead.Heard(id, MemberInfo{Kinds: s.set.kinds})
				}
			}
			time.Sleep(2 * lead.set.duty)
		}
		newKind := []command.Op{{Kind: command.Highest - 1}} // what it does plays no part: it must not even be looked at
		refused := func(when string) {
			t.Helper()
			start := time.Now()
			err := lead.admit(t.Context(), newKind)
			if !isCode(err, kv.CodeUnavailable) || time.Since(start) != gateWait {
				t.Errorf("%s: %v after %v", when, err, time.Since(start))
			}
		}
		refused("nobody has said anything")
		hear("b")
		refused("one has said nothing")
		hear("")
		refused("one does not know it")
		if n := lead.State().AllowedKinds(); n != 0 {
			t.Errorf("kinds up to %d are allowed", n)
		}
		c.mustPut(lead, "k", "v") // old kinds are not held up

		known["c"] = command.Highest // it is upgraded
		c.stop("c")
		c.open("c")
		done := make(chan error, 1)
		go func() { done <- lead.admit(t.Context(), newKind) }()
		time.Sleep(time.Second)
		hear("")
		if err := <-done; err != nil {
			t.Errorf("everybody knows it: %v", err)
		}
		// From now on it holds, also for a leader that has heard nobody, and while one is down.
		id := lead.opts.NodeID
		c.stop(id)
		lead = c.leader()
		if err := lead.admit(t.Context(), newKind); err != nil {
			t.Errorf("the next leader: %v", err)
		}
	})
}
