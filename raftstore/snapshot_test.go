package raftstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// A follower that the log no longer reaches back to gets a checkpoint while writes go on, and may be restarted at once.
func TestCatchUpByCheckpoint(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c").start()
		behind := c.follower().opts.NodeID
		c.stop(behind)
		lead := c.leader()
		time.Sleep(time.Second) // it is known to be down
		for i := range 1000 {
			c.mustPut(lead, key(i), key(i))
		}
		time.Sleep(time.Second)
		if first, err := lead.log.FirstIndex(); err != nil || first < 500 {
			t.Fatalf("the log begins at %d: %v", first, err)
		}

		time.Sleep(time.Minute)
		if n := lead.snaps.checkpoints(); n != 0 {
			t.Errorf("%d checkpoints were cut for a node that is down", n)
		}

		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		var last kv.Revision
		writers.Go(func() {
			for i := 1000; ctx.Err() == nil; i++ {
				last = c.mustPut(lead, key(i), key(i)).Revision
				time.Sleep(time.Millisecond)
			}
		})
		seen := new(observed)
		c.adapt = func(_ string, o *Options) { o.Observe = seen.see }
		for range 5 { // restarted as soon as the checkpoint is in place, while the log is still behind it
			s := c.open(behind)
			for s.snaps.installed() == 0 {
				time.Sleep(time.Millisecond)
			}
			c.stop(behind)
		}
		s := c.open(behind)
		time.Sleep(time.Second)
		stop()
		writers.Wait()
		c.converge(last)
		for i := range int(last) - 1 {
			if got := c.get(s, key(i)); got != key(i) {
				t.Fatalf("%s is %q", key(i), got)
			}
		}
		if recs := seen.records(); recs[0].Kind != kv.RecordAll {
			t.Errorf("the observer was not told that the state jumped: %+v", recs[0])
		}
		for id := range c.nodes {
			for _, d := range []string{stagingDir, outgoingDir} {
				if left, err := os.ReadDir(filepath.Join(c.dirs[id], d)); err != nil || len(left) != 0 {
					t.Errorf("%s left %v in %s: %v", id, left, d, err)
				}
			}
		}
	})
}

// The power goes after a snapshot was taken and the log was cut behind it. What the state had not synced is gone, and the
// log cannot give it back, so the snapshot must have made it durable; also the index of entries that the state never sees.
func TestPowerCutAfterSnapshot(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		disk := vfs.NewCrashableMem()
		for dir := c.dirs["a"]; dir != "/"; dir = filepath.Dir(dir) { // what is above the data directory survives anyway
			if err := errors.Join(disk.MkdirAll(dir, 0o700), syncDir(disk, filepath.Dir(dir))); err != nil {
				t.Fatal(err)
			}
		}
		c.adapt = func(_ string, o *Options) { o.FS = disk }
		s := c.start().leader()
		for i := range 100 {
			c.mustPut(s, key(i), "v")
		}
		if err := s.raft.Barrier(0).Error(); err != nil {
			t.Fatal(err)
		}
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		if err := s.log.DeleteRange(1, s.Status().SnapshotIndex); err != nil {
			t.Fatal(err)
		}
		after := disk.CrashClone(vfs.CrashCloneCfg{})
		c.stop("a")
		disk = after
		c.open("a")
		s = c.leader()
		for i := range 100 {
			if c.get(s, key(i)) != "v" {
				t.Errorf("%s is lost", key(i))
			}
		}
	})
}

// newState makes a state that holds n keys, with its directory.
func newState(t *testing.T, n int) (*state.State, string) {
	t.Helper()
	dir := t.TempDir()
	st, err := state.Open(filepath.Join(dir, stateDir), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns := kv.NamespaceID{1}
	entries := []state.Entry{{Index: 2, Term: 1, Batch: command.Batch{MeshTime: 1, Ops: []command.Op{{
		Kind: command.KindInit, Cluster: kv.ClusterID{1}, Epoch: kv.Epoch{1}, Namespace: ns, Title: "default",
	}}}}}
	for i := range n {
		entries = append(entries, state.Entry{Index: uint64(3 + i), Term: 1, Batch: command.Batch{MeshTime: 1, Ops: []command.Op{{
			Kind: command.KindPut, Namespace: ns, Key: key(i), Value: bytes.Repeat([]byte{byte(i)}, 100), Size: 100,
		}}}})
	}
	if _, err := st.Apply(entries); err != nil {
		t.Fatal(err)
	}
	return st, dir
}

func openStore(t *testing.T, dir string, st *state.State) *snapshotStore {
	t.Helper()
	s, err := openSnapshots(vfs.Default, dir, raft.NewInmemStore(), st.Applied())
	if err != nil {
		t.Fatal(err)
	}
	s.cut, s.inspect, s.sent, s.wanted = st.Checkpoint, state.Inspect, func() {}, func() error { return nil }
	s.hold = func() func() { return func() {} }
	return s
}

var members = raft.Configuration{Servers: []raft.Server{
	{ID: "a", Address: "a", Suffrage: raft.Voter}, {ID: "b", Address: "b", Suffrage: raft.Nonvoter},
}}

// take makes a snapshot as the library does.
func take(t *testing.T, s *snapshotStore, st *state.State, index uint64) {
	t.Helper()
	sink, err := s.Create(raft.SnapshotVersionMax, index, 1, members, 1, nil)
	if err == nil {
		err = snapshot{&fsm{state: st}}.Persist(sink)
	}
	if err == nil {
		err = sink.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// transfer sends the newest snapshot of one store to another, and returns the id of what was staged.
func transfer(t *testing.T, from, to *snapshotStore) (id string, size int64) {
	t.Helper()
	metas, err := from.List()
	if err != nil {
		t.Fatal(err)
	}
	meta, r, err := from.Open(metas[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	sink, err := to.Create(meta.Version, meta.Index, meta.Term, meta.Configuration, meta.ConfigurationIndex, nil)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(sink, iotest.HalfReader(r))
	if err != nil || n != meta.Size {
		t.Fatalf("%d bytes of %d: %v", n, meta.Size, err)
	}
	if err := errors.Join(sink.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	return sink.ID(), n
}

// Whatever the step after which the process ends, the next start finds a directory that fits together.
func TestCrashDuringInstall(t *testing.T) {
	src, srcDir := newState(t, 500)
	defer src.Close()
	from := openStore(t, srcDir, src)
	take(t, from, src, 400)

	for _, crash := range []string{"staged", "noted", "replaced", "recorded", "done"} {
		t.Run(crash, func(t *testing.T) {
			st, dir := newState(t, 5)
			old := st.Applied()
			to := openStore(t, dir, st)
			id, _ := transfer(t, from, to)
			c := to.staged[id]
			m := c.meta
			m.Installed = c.applied.Index
			steps := map[string]func() error{
				"staged":   func() error { return nil },
				"noted":    func() error { return writeMeta(to.fs, to.metaDir(), installingFile, &m) },
				"replaced": func() error { return st.Replace(c.dir) },
				"recorded": func() error { return to.record(&m) },
				"done":     func() error { _, err := to.install(id, st); return err },
			}
			for _, step := range []string{"staged", "noted", "replaced", "recorded"} {
				if crash == "done" {
					step = crash
				}
				if err := steps[step](); err != nil {
					t.Fatal(step, err)
				}
				if step == crash {
					break
				}
			}
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}

			st, err := state.Open(filepath.Join(dir, stateDir), state.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			again := openStore(t, dir, st)
			log := memoryLog{raft.NewInmemStore()} // as before the transfer, with the term of its sender
			err = errors.Join(log.StoreLogs([]*raft.Log{{Index: 1}, {Index: 7}}), log.SetUint64(termKey, 1))
			if err != nil {
				t.Fatal(err)
			}
			at, err := standingOf(log, again, st.Applied())
			if err != nil {
				t.Fatal(err)
			}
			if err := at.check(dir); err != nil {
				t.Errorf("%+v: %v", at, err)
			}
			want := standing{first: 1, last: 7, applied: old.Index, term: 1, known: 1}
			if crash != "staged" && crash != "noted" {
				want = standing{first: 1, last: 7, applied: 502, snapshot: 400, installed: 502, term: 1, known: 1}
			}
			if at != want {
				t.Errorf("stands at %+v, want %+v", at, want)
			}
			if m := again.newest(); m != nil {
				if got := m.raft().Configuration; len(got.Servers) != 2 || got.Servers[1] != members.Servers[1] {
					t.Errorf("members %+v", got)
				}
			}
			names, err := os.ReadDir(filepath.Join(dir, snapshotsDir))
			for _, n := range names {
				if strings.HasPrefix(n.Name(), "installing") {
					t.Errorf("%s is left: %v", n.Name(), err)
				}
			}
		})
	}
}

func TestSnapshotFiles(t *testing.T) {
	st, dir := newState(t, 100)
	defer st.Close()
	s := openStore(t, dir, st)
	for _, index := range []uint64{10, 50, 50, 90} {
		take(t, s, st, index)
	}
	again := openStore(t, dir, st)
	metas, err := again.List()
	if err != nil || len(metas) != keepSnapshots || metas[0].Index != 90 || metas[1].Index != 50 {
		t.Fatalf("%+v %v", metas, err)
	}
	if _, _, err := again.Open("snap-unknown"); err == nil {
		t.Error("opened a snapshot that is not there")
	}
	sink, err := again.Create(raft.SnapshotVersionMax, 95, 1, members, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err == nil {
		t.Error("recorded a snapshot that nobody has witnessed")
	}

	path := filepath.Join(dir, snapshotsDir, metas[0].ID+metaSuffix)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/3] ^= 4
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	// A damaged file is not believed, and the others are as good as they were.
	again = openStore(t, dir, st)
	if again.newestIndex() != 50 || len(again.damaged) != 1 || !errors.Is(again.damaged[0], errDamagedMeta) {
		t.Errorf("a damaged snapshot file: the newest is at %d, damaged are %v", again.newestIndex(), again.damaged)
	}
	if err := again.dropDamaged(); err != nil {
		t.Error(err)
	}
	if again = openStore(t, dir, st); len(again.damaged) != 0 {
		t.Errorf("it was not removed: %v", again.damaged)
	}
}

// An installed checkpoint stands ahead of the log for a while. That must not be forgotten when the snapshot it came with is.
func TestInstalledIsRemembered(t *testing.T) {
	src, srcDir := newState(t, 100)
	defer src.Close()
	from := openStore(t, srcDir, src)
	take(t, from, src, 20)
	st, dir := newState(t, 1)
	defer st.Close()
	to := openStore(t, dir, st)
	id, _ := transfer(t, from, to)
	if _, err := to.install(id, st); err != nil {
		t.Fatal(err)
	}
	for _, index := range []uint64{30, 40, 50} {
		take(t, to, st, index)
	}
	if got := openStore(t, dir, st).installed(); got != 102 {
		t.Errorf("installed up to %d", got)
	}
	for _, index := range []uint64{110, 120} {
		take(t, to, st, index)
	}
	if got := openStore(t, dir, st).installed(); got != 0 {
		t.Errorf("the log has caught up, still installed up to %d", got)
	}
}

func TestStandingCheck(t *testing.T) {
	for name, test := range map[string]struct {
		at  standing
		bad string
	}{
		"empty":                              {standing{}, ""},
		"log only":                           {standing{first: 1, last: 9}, ""},
		"log and state":                      {standing{first: 1, last: 9, applied: 9}, ""},
		"behind the log":                     {standing{first: 4, last: 9, snapshot: 5, applied: 5}, ""},
		"all of the log cut":                 {standing{snapshot: 5, applied: 5}, ""},
		"checkpoint ahead":                   {standing{first: 1, last: 3, snapshot: 8, installed: 12, applied: 12}, ""},
		"state ahead of everything":          {standing{first: 1, last: 9, snapshot: 5, applied: 10}, "log (raft.db) is missing or older"},
		"all lost but the log's word":        {standing{term: 2, recorded: 9}, "has been cut up to entry 9"},
		"forgotten vote":                     {standing{first: 1, last: 9, applied: 9, term: 1, known: 2}, "vote with it, is missing"},
		"no log":                             {standing{applied: 3}, "log (raft.db) is missing or older"},
		"ahead of the checkpoint too":        {standing{first: 1, last: 3, snapshot: 8, installed: 12, applied: 13}, "log (raft.db) is missing"},
		"no state":                           {standing{first: 4, last: 9, snapshot: 5}, "state (state) is missing or older"},
		"older state":                        {standing{first: 4, last: 9, snapshot: 5, applied: 4}, "state (state) is missing or older"},
		"no snapshot":                        {standing{first: 4, last: 9}, "has been cut up to entry 3"},
		"no snapshot, but the state is well": {standing{first: 4, last: 9, applied: 9}, "has been cut up to entry 3"},
	} {
		err := test.at.check("/data")
		switch {
		case test.bad == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.bad != "" && (err == nil || !strings.Contains(err.Error(), test.bad) || !strings.Contains(err.Error(), "move the data directory aside")):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A checkpoint that stands before what was applied is refused once the log no longer has the entries since: the library
// would go back to it and miss them. A follower that was told of commits while the checkpoint was on its way meets it.
func TestCheckpointComesTooLate(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a")
		s := c.start().leader()
		for i := range 60 {
			c.mustPut(s, key(i), "v")
		}
		applied := s.raft.AppliedIndex()
		if err := s.log.Log.DeleteRange(1, applied-10); err != nil {
			t.Fatal(err)
		}
		for index, want := range map[uint64]bool{applied + 1: true, applied: true, applied - 10: true, applied - 11: false, 3: false} {
			if err := s.staleCheckpoint(index); (err == nil) != want {
				t.Errorf("at %d of %d: %v", index, applied, err)
			}
		}
		before := s.State().Applied()
		late := &stagedCheckpoint{meta: snapshotMeta{Index: applied - 11}, dir: "late", applied: before}
		late.applied.Index += 100
		s.snaps.mu.Lock()
		s.snaps.staged["late"] = late
		s.snaps.mu.Unlock()
		if err := s.fsm.Restore(io.NopCloser(strings.NewReader("late"))); err == nil || !strings.Contains(err.Error(), "too late") {
			t.Errorf("it was installed: %v", err)
		}
		if s.State().Applied() != before || s.snaps.newestIndex() != 0 {
			t.Errorf("the state stands at %+v, and a snapshot at %d", s.State().Applied(), s.snaps.newestIndex())
		}
	})
}

// Who needs a checkpoint is judged by what the library has found a member's log to agree with, because that is where it
// goes on: notices may have brought the member further.
func TestCheckpointIsWantedByTheLibrary(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c := newCluster(t, "a", "b", "c")
		lead := c.start().leader()
		for i := range 60 {
			c.mustPut(lead, key(i), "v")
		}
		time.Sleep(time.Second)
		if err := lead.checkpointWanted(); err == nil {
			t.Error("nobody needs one")
		}
		term, _ := lead.leaderTerm()
		id := raft.ServerID(c.follower().opts.NodeID)
		ack, _ := lead.acks.of(term, id)
		if got := lead.trans.carried(term, id).match; got != ack.match {
			t.Errorf("it has acknowledged %d, the library knows %d", ack.match, got)
		}
		if err := lead.log.Log.DeleteRange(1, 40); err != nil {
			t.Fatal(err)
		}
		lead.trans.matched(id, term, 0, 20) // the library was refused: it knows of 20 entries
		if err := lead.checkpointWanted(); err != nil {
			t.Errorf("the library cannot go on from entry 20: %v", err)
		}
		c.converge(c.mustPut(lead, "end", "v").Revision)
		time.Sleep(time.Second)
		if got, want := lead.trans.carried(term, id).match, lead.raft.LastIndex(); got != want {
			t.Errorf("the library knows of %d entries, there are %d", got, want)
		}
	})
}
