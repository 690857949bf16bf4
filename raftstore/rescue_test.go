package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// hurt is three voters on disk, of which one gets damaged while it is stopped.
type hurt struct {
	*cluster
	values map[string]string // what was acknowledged
	last   kv.Revision       // of that
}

func newHurt(t *testing.T) *hurt {
	h := &hurt{cluster: onDisk(t, "a", "b", "c"), values: map[string]string{}}
	adapt := h.adapt
	h.adapt = func(id string, o *Options) {
		adapt(id, o)
		o.Profile = ProfileWAN // timers that a busy machine does not upset
	}
	h.start()
	return h
}

// write puts n keys, half of them large enough to be kept apart, and waits until all nodes have them.
func (h *hurt) write(from, n int) {
	h.t.Helper()
	for i := from; i < from+n; i++ {
		value := strings.Repeat(fmt.Sprintf("value %d ", i), 1+i%2*300)
		h.insist(func(s *Store) error {
			res, err := s.Propose(h.t.Context(), []command.Op{h.put(key(i), value)})
			h.last = max(h.last, res.Revision)
			return err
		})
		h.values[key(i)] = value
	}
	h.converge(h.last)
}

// cutLogs takes a snapshot everywhere and cuts the logs behind it, so that none begins at the first entry.
func (h *hurt) cutLogs() {
	h.t.Helper()
	for _, s := range h.nodes {
		h.insist(func(*Store) error { return s.raft.Snapshot().Error() })
		if err := s.log.DeleteRange(1, s.snaps.newestIndex()-2); err != nil {
			h.t.Fatal(err)
		}
	}
}

// insist calls fn with the leader until it succeeds: on a busy machine the leader may change.
func (h *hurt) insist(fn func(*Store) error) {
	h.t.Helper()
	for start := time.Now(); ; {
		err := fn(h.leader())
		if err == nil {
			return
		}
		if time.Since(start) > time.Minute {
			h.t.Fatal(err)
		}
	}
}

// check reads everything at a node: no value is wrong. It returns the first error.
func (h *hurt) check(s *Store) error {
	h.t.Helper()
	for k, want := range h.values {
		item, _, err := s.State().Get(h.ns, k, false)
		if err != nil {
			return err
		}
		if item.Absent || string(item.Value) != want {
			h.t.Fatalf("%s has %d bytes for %s, absent %v; want %d", s.opts.NodeID, len(item.Value), k, item.Absent, len(want))
		}
	}
	return nil
}

// from asks one of the others for a repair.
func (h *hurt) from(ids ...string) Ask {
	return func(ctx context.Context, req RescueRequest) (meta []byte, archive io.ReadCloser, err error) {
		for _, id := range ids {
			if s := h.nodes[id]; s != nil {
				if meta, archive, _, err = s.Offer(ctx, req); err == nil {
					return meta, archive, nil
				}
			}
		}
		return nil, nil, err
	}
}

func (h *hurt) rescue(id string, ask Ask) error {
	o := h.options(id)
	defer o.Stream.Close()
	return Rescue(h.t.Context(), o, h.mesh(), ask)
}

func (h *hurt) mesh() kv.ClusterID {
	for _, s := range h.nodes {
		return s.State().Applied().Cluster
	}
	return kv.ClusterID{}
}

// tryOpen opens a node whose directory may be damaged. fatal is called at most once.
func (h *hurt) tryOpen(id string, fatal func(error)) (*Store, error) {
	o := h.options(id)
	var once sync.Once
	o.Fatal = func(err error) { once.Do(func() { fatal(err) }) }
	s, err := Open(h.t.Context(), o)
	if err != nil {
		return nil, errors.Join(err, ignoreClosed(o.Stream.Close()))
	}
	h.nodes[id] = s
	h.t.Cleanup(func() { h.closeStore(s) })
	return s, nil
}

func ignoreClosed(error) error { return nil }

// files are those of a data directory, by what they are.
func files(t *testing.T, dir string) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Size() == 0 || d.Name() == ballastFile {
			return err
		}
		kind := d.Name()
		switch ext := filepath.Ext(kind); {
		case ext == ".sst", ext == ".blob", ext == ".log", ext == ".json":
			kind = ext
		case strings.HasPrefix(kind, "MANIFEST"), strings.HasPrefix(kind, "OPTIONS"):
			kind = kind[:strings.IndexByte(kind, '-')]
		}
		found[kind] = append(found[kind], path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A byte is flipped in every kind of file of a stopped voter. It is found and repaired with the others' help, or it does no
// harm: nothing that is read is wrong, and the voter is a full member afterwards.
func TestEveryFileDamaged(t *testing.T) {
	h := newHurt(t)
	h.write(0, 60)
	for _, s := range h.nodes {
		h.insist(func(*Store) error { return s.raft.Snapshot().Error() })
	}
	h.write(60, 40)
	rng := rand.New(rand.NewPCG(8, 9))
	results := map[string]string{}
	kinds := files(t, h.dirs["c"])
	for kind := range kinds {
		for range 2 {
			h.stop("c")
			candidates := files(t, h.dirs["c"])[kind]
			if len(candidates) == 0 {
				h.open("c")
				continue
			}
			path := candidates[rng.IntN(len(candidates))]
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := rng.IntN(len(bytes.TrimRight(text, "\x00")))
			flipByte(t, path, at, 1<<rng.IntN(8))
			results[kind] += h.comeBack("c", fmt.Sprintf("%s at %d", path, at)) + " "
			h.write(1000, 1)
			if err := h.check(h.nodes["c"]); err != nil {
				t.Fatalf("%s at %d: after it all: %v", path, at, err)
			}
		}
	}
	t.Logf("%v", results)
	for _, kind := range []string{logFile, ".sst", ".blob", ".json", voteFiles[0], voteFiles[1], "MANIFEST"} {
		if results[kind] == "" {
			t.Errorf("there was no %s", kind)
		}
	}
}

// comeBack opens a damaged voter, and repairs it when it says that it is damaged, at its start or when it is read.
func (h *hurt) comeBack(id, what string) string {
	h.t.Helper()
	told := make(chan error, 1)
	caught, cancel := context.WithCancel(h.t.Context())
	defer cancel()
	s, err := h.tryOpen(id, func(err error) { told <- err; cancel() })
	result := "harmless"
	if err == nil {
		// What was flushed is there at once, the rest comes from the log; both may meet the damage.
		if err = s.State().WaitRevision(caught, h.last); err == nil {
			err = h.check(s)
		}
		if err != nil {
			s.Noticed(err)
			select {
			case err = <-told:
			case <-time.After(10 * time.Second):
				h.t.Fatalf("%s: %v was met and did not end the node", what, err)
			}
			result = "read"
			h.stop(id)
			if _, again := h.tryOpen(id, nil); !errors.As(again, new(*Damage)) {
				h.t.Fatalf("%s: it starts again on what is damaged: %v", what, again)
			}
		}
	} else {
		result = "start"
	}
	if err == nil {
		return result
	}
	if !errors.As(err, new(*Damage)) {
		h.t.Fatalf("%s: %v", what, err)
	}
	h.insist(func(*Store) error { return h.rescue(id, h.from("a", "b")) })
	h.open(id)
	return result
}

// While one voter is down, another one whose state is damaged and whose log is whole comes back with the help of the third,
// which cannot lead: together they are a quorum.
func TestRescueWithoutLeader(t *testing.T) {
	h := newHurt(t)
	h.write(0, 20)
	h.cutLogs()
	h.stop("a")
	h.stop("c")
	if err := os.WriteFile(filepath.Join(h.dirs["c"], damageFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err := readDamage(h.dirs["c"]); err != nil || d == nil || !d.Log {
		t.Fatalf("a note that makes no sense means the worst: %+v, %v", d, err)
	}
	if err := os.Remove(filepath.Join(h.dirs["c"], damageFile)); err != nil {
		t.Fatal(err)
	}
	if err := (&Damage{Dir: h.dirs["c"], Err: errors.New("test")}).note(); err != nil {
		t.Fatal(err)
	}
	if _, err := h.tryOpen("c", nil); !errors.As(err, new(*Damage)) {
		t.Fatalf("opened: %v", err)
	}
	if err := h.rescue("c", h.from("b")); err != nil {
		t.Fatal(err)
	}
	if err := h.rescue("c", nil); err != nil { // nothing is to be done any more
		t.Fatal(err)
	}
	h.open("c")
	h.write(20, 5)
	if err := h.check(h.nodes["c"]); err != nil {
		t.Error(err)
	}
}

// A log that begins at the first entry makes the state again, without anybody's help.
func TestReplayedFromLog(t *testing.T) {
	c := onDisk(t, "a")
	s := c.start().leader()
	for i := range 20 {
		c.mustPut(s, key(i), "v")
	}
	c.stop("a")
	for _, path := range files(t, c.dirs["a"])[".sst"] {
		flipByte(t, path, 10, 1)
	}
	o := c.options("a")
	o.Fatal = func(error) {}
	s, err := Open(t.Context(), o)
	if err == nil { // nothing was read from there yet
		_, _, rerr := s.State().Get(c.ns, key(1), false)
		s.noticed(&Damage{Dir: c.dirs["a"], Err: rerr})
		for d := (*Damage)(nil); d == nil; {
			if d, err = readDamage(c.dirs["a"]); err != nil {
				t.Fatal(err)
			}
		}
		c.closeStore(s)
	}
	o = c.options("a")
	if err := errors.Join(Rescue(t.Context(), o, kv.ClusterID{}, nil), o.Stream.Close()); err != nil {
		t.Fatal(err)
	}
	c.open("a")
	for i := range 20 {
		if c.get(c.leader(), key(i)) != "v" {
			t.Errorf("%s is lost", key(i))
		}
	}
}

// A voter that has lost entries of its log needs the leader, of a term that is not older than its own, and comes back with
// everything that was committed.
func TestRescueLostLog(t *testing.T) {
	h := newHurt(t)
	h.write(0, 20)
	h.stop("c")
	h.insist(func(s *Store) error { // it is not missed
		_, err := s.Propose(t.Context(), []command.Op{h.put("later", "v")})
		return err
	})
	h.values["later"] = "v"
	path := filepath.Join(h.dirs["c"], logFile)
	for page := range 2 { // both of its header pages
		flipByte(t, path, page*os.Getpagesize()+40, 1)
	}
	_, err := h.tryOpen("c", nil)
	if d := new(Damage); !errors.As(err, &d) || !d.Log {
		t.Fatalf("opened: %v", err)
	}
	follower := h.follower().opts.NodeID
	if err := h.rescue("c", h.from(follower)); !isCode(err, kv.CodeNotLeader) {
		t.Errorf("a follower's help: %v", err)
	}
	// Its own term is later than the leader's, because it was a candidate once.
	v, _, err := openVotes(h.dirs["c"], testKEK(t))
	if err != nil {
		t.Fatal(err)
	}
	term, err := v.GetUint64(termKey)
	if err = errors.Join(err, v.SetUint64(termKey, term+1), v.close()); err != nil {
		t.Fatal(err)
	}
	lead := h.leader()
	if lead.raft.CurrentTerm() > term {
		t.Log("an election came in between")
	}
	if err := h.rescue("c", h.from(lead.opts.NodeID)); !isCode(err, kv.CodeNoLeader) {
		t.Errorf("a leader of an earlier term: %v", err)
	}
	h.insist(func(s *Store) error { return h.rescue("c", h.from(s.opts.NodeID)) })
	s := h.open("c")
	if last := s.Status().LastIndex; last < lead.Status().LastIndex-20 {
		t.Errorf("it comes back with its log at %d, the leader's is at %d", last, lead.Status().LastIndex)
	}
	h.write(20, 5)
	if err := h.check(s); err != nil {
		t.Error(err)
	}
	if st := s.Status(); len(st.Voters) != 3 {
		t.Errorf("it is a member of %v", st.Voters)
	}
}

// What is sent must be of the same mesh, whole, and far enough.
func TestRescueRefuses(t *testing.T) {
	h := newHurt(t)
	h.write(0, 10)
	h.cutLogs()
	h.stop("c")
	note := func() {
		if err := (&Damage{Dir: h.dirs["c"], Err: errors.New("test")}).note(); err != nil {
			t.Fatal(err)
		}
	}
	note()
	good := h.from("a", "b")
	for name, ask := range map[string]Ask{
		"nobody answers": func(context.Context, RescueRequest) ([]byte, io.ReadCloser, error) { return nil, nil, errors.New("no") },
		"cut short": func(ctx context.Context, req RescueRequest) ([]byte, io.ReadCloser, error) {
			meta, archive, err := good(ctx, req)
			return meta, struct {
				io.Reader
				io.Closer
			}{io.LimitReader(archive, 1000), archive}, err
		},
		"no snapshot": func(ctx context.Context, req RescueRequest) ([]byte, io.ReadCloser, error) {
			_, archive, err := good(ctx, req)
			return []byte("{}"), archive, err
		},
		"too old": func(ctx context.Context, req RescueRequest) ([]byte, io.ReadCloser, error) {
			meta, archive, err := good(ctx, req)
			return bytes.ReplaceAll(meta, []byte(`"index":`), []byte(`"index":9999`)), archive, err
		},
	} {
		if err := h.rescue("c", ask); err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if _, err := h.tryOpen("c", nil); !errors.As(err, new(*Damage)) {
			t.Errorf("%s: it starts afterwards: %v", name, err)
		}
	}
	o := h.options("c")
	defer o.Stream.Close()
	if err := Rescue(t.Context(), o, kv.NewClusterID(), good); !isCode(err, kv.CodeInvalidParameter) {
		t.Errorf("of another mesh: %v", err)
	}
	if err := h.rescue("c", good); err != nil {
		t.Fatal(err)
	}
	if err := h.check(h.open("c")); err != nil {
		t.Error(err)
	}
}

// Damaged entries that the state has applied already cost nothing and ask nobody: not even a mesh of one voter has to.
func TestLogIsMended(t *testing.T) {
	c := onDisk(t, "a")
	s := c.start().leader()
	for i := range 50 {
		c.mustPut(s, key(i), "v")
	}
	c.stop("a") // flushes the state
	l := openTestLog(t, c.dirs["a"])
	last, err := l.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	bad := last - 20
	newest, err := l.bolt.transaction()
	if err != nil {
		t.Fatal(err)
	}
	if err := (logNote{tx: newest, before: l.held, after: l.held}).write(l.votes); err != nil { // as if nothing had been written
		t.Fatal(err)
	}
	err = l.bolt.store.StoreLog(&raft.Log{Index: bad, Term: 1, Data: []byte("no longer an entry, but long enough to be looked at as one")})
	if err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	s = c.open("a")
	if first, err := s.log.FirstIndex(); err != nil || first <= bad {
		t.Errorf("the log begins at %d, %v", first, err)
	}
	lead := c.leader()
	c.mustPut(lead, "after", "v")
	for i := range 50 {
		if c.get(lead, key(i)) != "v" {
			t.Errorf("%s is lost", key(i))
		}
	}
	if st := lead.Status(); len(st.Voters) != 1 {
		t.Errorf("it is a member of %v", st.Voters)
	}
	c.stop("a")
	c.open("a")
	c.leader()
}

// A leader whose log is lost comes back behind a leader that thinks of it where it was when it died, before the snapshot
// with which it comes back: that one must not go back entry by entry to find out where they agree.
func TestRescuedLeader(t *testing.T) {
	h := newHurt(t)
	h.write(0, 20)
	id := h.leader().opts.NodeID
	h.stop(id)
	if err := (&Damage{Dir: h.dirs[id], Log: true, Err: errors.New("test")}).note(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		h.insist(func(s *Store) error {
			_, err := s.Propose(t.Context(), []command.Op{h.put(key(100+i), "v")})
			return err
		})
		h.values[key(100+i)] = "v"
	}
	h.insist(func(s *Store) error { return h.rescue(id, h.from(s.opts.NodeID)) })
	adapt, rejections := h.adapt, &countingHandler{text: "failed to get"} // what the library says when it cannot compare
	h.adapt = func(id string, o *Options) {
		adapt(id, o)
		o.Logger = slog.New(rejections)
	}
	s := h.open(id)
	h.write(20, 5)
	if err := h.check(s); err != nil {
		t.Error(err)
	}
	if n := rejections.n.Load(); n > 0 {
		t.Errorf("%d requests of the leader were rejected", n)
	}
}

// countingHandler counts the records that contain a text.
type countingHandler struct {
	slog.Handler
	text string
	n    atomic.Int64
}

func (*countingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (c *countingHandler) WithAttrs([]slog.Attr) slog.Handler     { return c }
func (c *countingHandler) WithGroup(string) slog.Handler          { return c }

func (c *countingHandler) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, c.text) {
		c.n.Add(1)
	}
	return nil
}

func TestUncovered(t *testing.T) {
	entries := func(from, to uint64) (out []*raft.Log) {
		for i := from; i <= to; i++ {
			out = append(out, &raft.Log{Index: i, Term: 3})
		}
		return out
	}
	const covered = 10
	for name, tc := range map[string]struct{ req, want raft.AppendEntriesRequest }{
		"heartbeat":            {raft.AppendEntriesRequest{}, raft.AppendEntriesRequest{}},
		"after it":             {raft.AppendEntriesRequest{PrevLogEntry: 12, PrevLogTerm: 3, Entries: entries(13, 14), LeaderCommitIndex: 20}, raft.AppendEntriesRequest{PrevLogEntry: 12, PrevLogTerm: 3, Entries: entries(13, 14), LeaderCommitIndex: 20}},
		"right behind it":      {raft.AppendEntriesRequest{PrevLogEntry: 10, PrevLogTerm: 3, Entries: entries(11, 11)}, raft.AppendEntriesRequest{PrevLogEntry: 10, PrevLogTerm: 3, Entries: entries(11, 11)}},
		"across its end":       {raft.AppendEntriesRequest{PrevLogEntry: 7, PrevLogTerm: 3, Entries: entries(8, 12), LeaderCommitIndex: 20}, raft.AppendEntriesRequest{Entries: entries(11, 12), LeaderCommitIndex: 12}},
		"within it":            {raft.AppendEntriesRequest{PrevLogEntry: 4, PrevLogTerm: 3, Entries: entries(5, 9), LeaderCommitIndex: 20}, raft.AppendEntriesRequest{Entries: entries(1, 0), LeaderCommitIndex: 10}},
		"up to its end":        {raft.AppendEntriesRequest{PrevLogEntry: 4, PrevLogTerm: 3, Entries: entries(5, 10), LeaderCommitIndex: 9}, raft.AppendEntriesRequest{Entries: entries(1, 0), LeaderCommitIndex: 9}},
		"nothing but a commit": {raft.AppendEntriesRequest{PrevLogEntry: 4, PrevLogTerm: 3, LeaderCommitIndex: 20}, raft.AppendEntriesRequest{LeaderCommitIndex: 10}},
		"from the beginning":   {raft.AppendEntriesRequest{Entries: entries(1, 12), LeaderCommitIndex: 12}, raft.AppendEntriesRequest{Entries: entries(11, 12), LeaderCommitIndex: 12}},
	} {
		before := len(tc.req.Entries)
		got := uncovered(&tc.req, covered)
		if len(tc.req.Entries) != before {
			t.Errorf("%s: the request was changed", name)
		}
		if len(got.Entries) == 0 && len(tc.want.Entries) == 0 {
			got.Entries, tc.want.Entries = nil, nil
		}
		if !reflect.DeepEqual(*got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, *got, tc.want)
		}
	}
}
