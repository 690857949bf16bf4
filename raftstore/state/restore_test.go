package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

func beginRestore(n uint64, replace bool) command.Op {
	return command.Op{Kind: command.KindRestoreBegin, Restore: &command.Restore{ID: id16(n), Replace: replace}}
}

func chunk(n, seq uint64, ops ...command.Op) command.Op {
	var records []byte
	for i := range ops {
		records = command.AppendStaged(records, &ops[i])
	}
	return command.Op{Kind: command.KindRestoreChunk, Restore: &command.Restore{ID: id16(n), Seq: seq, Records: records}}
}

func commitRestore(n, epoch, rev, chunks, keys, size uint64) command.Op {
	return command.Op{
		Kind: command.KindRestoreEnd, Epoch: kv.Epoch(id16(epoch)), Revision: kv.Revision(rev),
		Restore: &command.Restore{ID: id16(n), Chunks: chunks, Keys: keys, Bytes: size},
	}
}

func dropRestore(n uint64, limit uint32) command.Op {
	return command.Op{Kind: command.KindRestoreEnd, Limit: limit, Restore: &command.Restore{ID: id16(n), Drop: true}}
}

func at(rev kv.Revision, op command.Op) command.Op {
	op.Revision = rev
	return op
}

// content is everything that clients see, one line a key.
func content(t testing.TB, s *State) string {
	t.Helper()
	c, err := s.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var b strings.Builder
	for _, ns := range c.Namespaces() {
		st, err := s.NamespaceStats(ns.ID)
		fmt.Fprintf(&b, "%s %q made at %d, key %q, %d keys, %d bytes (%v)\n", ns.ID, ns.Title, ns.Created, ns.WrappedKey, st.Keys, st.Bytes, err)
		err = c.EachKey(ns.ID, func(key string, it *kv.Item) error {
			fmt.Fprintf(&b, "  %q %+v\n", key, *it)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// copyOf makes the chunks of a restore of all that another state holds.
func copyOf(t testing.TB, s *State, n uint64, perChunk int) (chunks []command.Op, end command.Op) {
	t.Helper()
	c, err := s.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var ops []command.Op
	var keys, size uint64
	for _, ns := range c.Namespaces() {
		ops = append(ops, at(ns.Created, command.Op{Kind: command.KindCreateNamespace, Namespace: ns.ID, Title: ns.Title, WrappedKey: ns.WrappedKey}))
		err := c.EachKey(ns.ID, func(key string, it *kv.Item) error {
			ops = append(ops, at(it.Revision, command.Op{
				Kind: command.KindPut, Namespace: ns.ID, Key: key, WriteID: it.WriteID, Expiry: it.Expiry, Size: it.Size,
				Metadata: it.Metadata, Value: it.Value, Blob: it.Blob,
			}))
			keys++
			size += uint64(len(key)) + uint64(it.Size)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for len(ops) > 0 {
		k := min(perChunk, len(ops))
		chunks = append(chunks, chunk(n, uint64(len(chunks)+1), ops[:k]...))
		ops = ops[k:]
	}
	return chunks, commitRestore(n, 1000+n, uint64(c.Applied().Revision), uint64(len(chunks)), keys, size)
}

// source is a state with everything in it that a key can have.
func source(t testing.TB) *fixture {
	f := newState(t)
	f.at(10, create(ns2, "site"), in(ns2, put("same", "other namespace")), put("same", "v"), put("empty", ""),
		put("big", strings.Repeat("x", 5000)), putUntil("mortal", "soon", 500), putBlob("blob", 7), put("z\xc3\xbc", "z"))
	meta := put("meta", "m")
	meta.Metadata = []byte("sealed metadata")
	f.at(11, meta, put("gone", "g"), del("gone"), put("huge", strings.Repeat("y", 60_000)))
	return f
}

func ok(t testing.TB, res command.Result) command.Result {
	t.Helper()
	for i, r := range res.Ops {
		if r.Code != "" {
			t.Fatalf("operation %d: %s", i, r.Code)
		}
	}
	return res
}

func TestRestoreReplacesEverything(t *testing.T) {
	from := source(t)
	want := content(t, from.State)
	chunks, end := copyOf(t, from.State, 1, 3)

	f := openOn(t, vfs.NewMem())
	other := kv.NamespaceID(id16(77))
	first := initOp()
	first.Cluster, first.Namespace = kv.ClusterID(id16(5)), other
	f.at(0, first)
	f.at(50, in(other, put("old", "o")), in(other, putBlob("old blob", 900)), in(other, putUntil("old mortal", "x", 60)), create(ns1, "in the way"), put("same", "not this"))
	f.at(51, put("gone", "1"), put("same", "1")) // so that slots remember them
	before := content(t, f.State)

	var told []Committed
	f.Observe(func(c Committed) { told = append(told, c) })
	ok(t, f.at(52, beginRestore(1, true)))
	ok(t, f.at(52, chunks[0]))
	for _, c := range slices.Backward(chunks[1:]) { // out of order, but for those with a namespace
		if !strings.Contains(string(c.Restore.Records), "key of ") {
			f.at(52, c)
		}
	}
	for _, c := range chunks { // all of them, most of them again
		ok(t, f.at(53, c))
	}
	if got := content(t, f.State); got != before {
		t.Errorf("visible before the commit:\n%s", got)
	}
	for _, c := range told {
		if len(c.Records) != 0 || c.Control != nil {
			t.Errorf("told before the commit: %+v", c)
		}
	}
	if size, named, err := f.BlobSize(ns1, kv.BlobID(id16(7))); !named || size != 1<<20 || err != nil {
		t.Errorf("a staged blob is not named: %d bytes, %v", size, err)
	}
	told = nil
	was := f.Applied()
	end.Revision = 500
	res := ok(t, f.at(54, end))
	if a := f.Applied(); a.Revision != 501 || a.Epoch != end.Epoch || a.Cluster != was.Cluster || res.Ops[0].Revision != 501 || res.Epoch != end.Epoch {
		t.Errorf("after the commit: %+v, %+v", a, res)
	}
	if got := content(t, f.State); got != want {
		t.Errorf("restored:\n%s\nwant\n%s", got, want)
	}
	record := kv.Record{Epoch: end.Epoch, To: 501, Kind: kv.RecordAll}
	if len(told) != 1 || !reflect.DeepEqual(told[0].Records, []kv.Record{record}) || told[0].Control == nil ||
		told[0].Control.Revision != 501 || len(told[0].Control.Namespaces) != 2 {
		t.Errorf("told %+v", told)
	}
	if _, err := f.Changes(500, 10); !errors.Is(err, ErrTrimmed) {
		t.Errorf("the change index of the old history: %v", err)
	}
	if floors, _, _, err := f.FloorsAfter(500, 10); err != nil || len(floors) != 2 {
		t.Errorf("floors %v, %v", floors, err)
	}
	if r := ok(t, f.at(55, beginRestore(1, true))); f.Restore().Phase != RestoreDropping {
		t.Errorf("a late begin opened it again: %+v", r)
	}
	// The same commit again says the same, and the state goes on.
	if r := ok(t, f.at(55, end)); r.Ops[0].Revision != 501 || f.Applied().Revision != 501 {
		t.Errorf("again: %+v", r)
	}
	tag := [4]byte(end.Epoch[12:])
	r := f.at(56, when(put("same", "next"), command.Cond{Kind: command.CondRevision, EpochTag: tag, Revision: 4}),
		when(put("gone", "next"), command.Cond{Kind: command.CondPresent}), in(other, put("old", "o")))
	if r.Ops[0].Code != "" || r.Ops[0].Revision != 502 || r.Ops[1].Code != kv.CodeConditionFailed || r.Ops[2].Code != kv.CodeNamespaceNotFound {
		t.Errorf("after the restore: %+v", r.Ops)
	}
	if recs, err := f.Changes(501, 10); err != nil || len(recs) != 1 || recs[0].Prev != 501 || recs[0].To != 502 {
		t.Errorf("changes %+v, %v", recs, err)
	}
	f.at(600, command.Op{Kind: command.KindSweep, Limit: 10})
	if !f.get(ns1, "mortal").Absent {
		t.Error("a restored key is not swept")
	}
	checkDropped(t, f, 1, 900)
}

// checkDropped drops what is left and looks that nothing of it stays behind but a released blob.
func checkDropped(t *testing.T, f *fixture, restore uint64, blob uint64) {
	t.Helper()
	if r := f.Restore(); r.Phase != RestoreDropping || r.ID != id16(restore) {
		t.Errorf("restore %+v", r)
	}
	if r := ok(t, f.at(601, dropRestore(restore, 1))); r.Ops[0].Current != 1 {
		t.Errorf("the first step: %+v", r.Ops)
	}
	if r := ok(t, f.at(601, dropRestore(restore, 1))); r.Ops[0].Current != 0 {
		t.Errorf("the second step: %+v", r.Ops)
	}
	if r := f.at(602, dropRestore(restore, 1)); r.Ops[0].Code != kv.CodeNotFound {
		t.Errorf("dropped twice: %+v", r.Ops)
	}
	var left []string
	for _, space := range banks[1-f.w.restore.live].spaces() {
		if d := dump(t, f.State); strings.Contains(d, "\n\""+space) || strings.HasPrefix(d, "\""+space) {
			left = append(left, space)
		}
	}
	gone, err := released(f.State, 100)
	if len(left) != 0 || err != nil || len(gone) != 1 || gone[0].Blob != kv.BlobID(id16(blob)) {
		t.Errorf("left over: %q; released %+v, %v", left, gone, err)
	}
}

// TestRestoreRefuses: whatever does not fit changes nothing.
func TestRestoreRefuses(t *testing.T) {
	const n = 3
	space := at(1, create(ns2, "two"))
	key := at(2, in(ns2, put("k", "v")))
	cond := when(key, command.Cond{Kind: command.CondAbsent})
	raw := func(seq uint64, records string) command.Op {
		return command.Op{Kind: command.KindRestoreChunk, Restore: &command.Restore{ID: id16(n), Seq: seq, Records: []byte(records)}}
	}
	begun := slices.Clip([]command.Op{beginRestore(n, true), chunk(n, 1, space)})
	whole := slices.Clip(append(begun, chunk(n, 2, key)))
	for name, tc := range map[string]struct {
		before []command.Op
		op     command.Op
		want   kv.Code
	}{
		"data is there":                   {nil, beginRestore(n, false), kv.CodeConditionFailed},
		"another is under way":            {begun, beginRestore(n+1, true), kv.CodeUnavailable},
		"a chunk of no restore":           {nil, chunk(n, 1, space), kv.CodeNotFound},
		"a chunk of another restore":      {begun, chunk(n+1, 1, space), kv.CodeNotFound},
		"beyond the window":               {begun, chunk(n, 2+command.RestoreWindow, key), kv.CodeInternal},
		"a key without its namespace":     {begun, chunk(n, 2, in(ns1, key)), kv.CodeInternal},
		"a namespace twice":               {begun, chunk(n, 2, space), kv.CodeInternal},
		"a namespace twice in one":        {begun, chunk(n, 2, create(ns1, "x"), create(ns1, "y")), kv.CodeInternal},
		"a title twice":                   {begun, chunk(n, 2, create(ns1, "two")), kv.CodeInternal},
		"a title twice in one":            {begun, chunk(n, 2, create(ns1, "x"), create(kv.NamespaceID{9}, "x")), kv.CodeInternal},
		"a title that looks like an id":   {begun, chunk(n, 2, create(ns1, ns2.String())), kv.CodeInternal},
		"a namespace without an id":       {begun, chunk(n, 2, create(kv.NamespaceID{}, "x")), kv.CodeInternal},
		"the second record is bad":        {begun, chunk(n, 2, key, in(ns1, key)), kv.CodeInternal},
		"a condition":                     {begun, chunk(n, 2, cond), kv.CodeInternal},
		"a delete":                        {begun, chunk(n, 2, in(ns2, del("k"))), kv.CodeInternal},
		"records cut short":               {begun, raw(2, string(chunk(n, 2, key).Restore.Records[:20])), kv.CodeInternal},
		"no records":                      {begun, raw(2, "\xff"), kv.CodeInternal},
		"a commit of no restore":          {nil, commitRestore(n, 900, 9, 0, 0, 0), kv.CodeNotFound},
		"a commit of another":             {whole, commitRestore(n+1, 900, 9, 2, 1, 2), kv.CodeNotFound},
		"a chunk is missing at the end":   {whole, commitRestore(n, 900, 9, 3, 1, 2), kv.CodeInternal},
		"a chunk is missing in between":   {append(begun, chunk(n, 3, key)), commitRestore(n, 900, 9, 3, 1, 2), kv.CodeInternal},
		"too few keys":                    {whole, commitRestore(n, 900, 9, 2, 2, 2), kv.CodeInternal},
		"too few bytes":                   {whole, commitRestore(n, 900, 9, 2, 1, 3), kv.CodeInternal},
		"the epoch is not greater":        {whole, commitRestore(n, 200, 9, 2, 1, 2), kv.CodeEpochChanged},
		"a drop of another":               {whole, dropRestore(n+1, 5), kv.CodeNotFound},
		"a drop of one that is alive":     {whole, command.Op{Kind: command.KindRestoreEnd, Limit: 5, Restore: &command.Restore{ID: id16(n), Drop: true, Touched: 1}}, kv.CodeNotFound},
		"a chunk after it was dropped":    {append(begun, dropRestore(n, 0)), chunk(n, 2, key), kv.CodeNotFound},
		"a commit after it was dropped":   {append(whole, dropRestore(n, 5)), commitRestore(n, 900, 9, 2, 1, 2), kv.CodeNotFound},
		"an earlier commit comes again":   {append(whole, commitRestore(n, 900, 9, 2, 1, 2), beginRestore(n+1, true), commitRestore(n+1, 901, 9, 0, 0, 0)), commitRestore(n, 900, 9, 2, 1, 2), kv.CodeNotFound},
		"a chunk after it was committed":  {append(whole, commitRestore(n, 900, 9, 2, 1, 2)), chunk(n, 3, key), kv.CodeNotFound},
		"the mesh was filled in between":  {[]command.Op{del("k"), beginRestore(n, false), put("late", "x")}, commitRestore(n, 900, 9, 0, 0, 0), kv.CodeConditionFailed},
		"a namespace was made in between": {[]command.Op{del("k"), beginRestore(n, false), create(ns2, "late")}, commitRestore(n, 900, 9, 0, 0, 0), kv.CodeConditionFailed},
	} {
		t.Run(name, func(t *testing.T) {
			f := newState(t)
			f.at(1, put("k", "v"))
			for _, op := range tc.before {
				ok(t, f.at(2, op))
			}
			before := dump(t, f.State, "m/")
			r := f.at(3, tc.op)
			if r.Ops[0].Code != tc.want {
				t.Errorf("got %+v, want %s", r.Ops[0], tc.want)
			}
			if after := dump(t, f.State, "m/"); after != before {
				t.Errorf("something changed: %s", firstDifference(after, before))
			}
		})
	}
}

// TestRestoreCommitComesFirst: operations before it in its entry would be told with the epoch that it begins.
func TestRestoreCommitComesFirst(t *testing.T) {
	f := newState(t)
	ok(t, f.at(1, beginRestore(1, false), chunk(1, 1, at(5, create(ns2, "two")), at(6, in(ns2, put("k", "v"))))))
	end := commitRestore(1, 900, 9, 1, 1, 2)
	if r := f.at(2, command.Op{Kind: command.KindSweep}, end); r.Ops[1].Code != kv.CodeInternal || f.Applied().Epoch != testEpoch {
		t.Errorf("second in its entry: %+v", r.Ops)
	}
	r := f.at(3, end, when(in(ns2, put("k", "w")), command.Cond{Kind: command.CondPresent}))
	if ok(t, r); r.Ops[0].AsOf != 11 || r.Ops[1].Revision != 11 || string(f.get(ns2, "k").Value) != "w" {
		t.Errorf("first in its entry: %+v", r.Ops)
	}
}

// TestRestoreIdle: a restore that has fallen silent gives way, one that says that it is alive does not.
func TestRestoreIdle(t *testing.T) {
	f := newState(t)
	const silence = RestoreIdle / 1000
	ok(t, f.at(100, beginRestore(1, false), chunk(1, 1, create(ns2, "two"), in(ns2, putBlob("a", 50)), in(ns2, putBlob("b", 51)))))
	ok(t, f.at(100+silence-1, beginRestore(1, false)))
	if r := f.at(100+silence, beginRestore(2, false)); r.Ops[0].Code != kv.CodeUnavailable {
		t.Errorf("one that is alive: %+v", r.Ops)
	}
	seen := f.Restore()
	if seen.Touched != (100+silence-1)*1000 || seen.Phase != RestoreStaging {
		t.Errorf("restore %+v", seen)
	}
	ok(t, f.at(100+2*silence, beginRestore(2, false)))
	if gone, err := released(f.State, 10); err != nil || len(gone) != 2 {
		t.Errorf("released %v, %v", gone, err)
	}
	if r := f.at(100+2*silence, chunk(1, 2, create(ns1, "x"))); r.Ops[0].Code != kv.CodeNotFound {
		t.Errorf("a chunk of the silent one: %+v", r.Ops)
	}
	ok(t, f.at(100+2*silence, commitRestore(2, 900, 0, 0, 0, 0)))
	if n := len(f.Control().Namespaces); n != 0 {
		t.Errorf("%d namespaces after the restore of an empty mesh", n)
	}
}

// randomRestores puts restores between the entries of a random log: alive and dead ones, chunks that come twice, out of
// order and of the wrong restore, commits too early and in the middle of an entry.
func randomRestores(t *testing.T, rng *rand.Rand, log []Entry) []Entry {
	from := source(t)
	n, epoch := uint64(1), uint64(2000)
	chunks, end := copyOf(t, from.State, n, 1+rng.IntN(4))
	var out []Entry
	index := uint64(0)
	add := func(e Entry) {
		index++
		e.Index = index
		out = append(out, e)
	}
	for i, e := range log {
		add(e)
		if i == 0 {
			continue
		}
		for range rng.IntN(4) {
			r := Entry{Term: e.Term, Batch: command.Batch{MeshTime: e.Batch.MeshTime}}
			switch rng.IntN(12) {
			case 0, 1:
				r.Batch.Ops = append(r.Batch.Ops, beginRestore(n, rng.IntN(5) > 0))
			case 2:
				if rng.IntN(4) == 0 {
					r.Batch.Ops = append(r.Batch.Ops, dropRestore(n, rng.Uint32N(2)))
				}
			case 3, 4:
				r.Batch.Ops = append(r.Batch.Ops, chunks...)
			case 5, 6:
				epoch++
				end.Epoch = kv.Epoch(id16(epoch))
				r.Batch.Ops = append(r.Batch.Ops, end, putBlob("thief", 7), put("same", "right behind"), when(put("empty", "e"), command.Cond{Kind: command.CondPresent}), put("blob", "no blob"))
			case 7:
				if rng.IntN(3) == 0 {
					n++
					chunks, end = copyOf(t, from.State, n, 1+rng.IntN(4))
				}
			case 8: // a blob that was staged, or is named by a restored key
				r.Batch.Ops = append(r.Batch.Ops, putBlob("thief", 7), del("blob"), putBlob("thief", 7), del("thief"))
			default:
				r.Batch.Ops = append(r.Batch.Ops, chunks[rng.IntN(len(chunks))])
			}
			if len(r.Batch.Ops) > 0 {
				add(r)
			}
		}
	}
	return out
}

// TestRestoreIsDeterministic: the same log gives the same results and bytes, however it is grouped, and wherever the power
// is cut and the log replayed.
func TestRestoreIsDeterministic(t *testing.T) {
	commits := 0
	for seed := range uint64(4) {
		rng := rand.New(rand.NewPCG(seed, 9))
		log := randomRestores(t, rng, randomLog(rng, 200))
		one := openOn(t, vfs.NewMem())
		results, records := replay(t, one, log, func() int { return 1 })
		want := dump(t, one.State)
		for i, e := range log {
			for j, op := range e.Batch.Ops {
				if op.Kind == command.KindRestoreEnd && !op.Restore.Drop && results[i].Ops[j].Code == "" {
					commits++
				}
			}
		}
		for name, size := range map[string]func() int{
			"all at once": func() int { return len(log) },
			"random":      func() int { return 1 + rng.IntN(30) },
		} {
			other := openOn(t, vfs.NewMem())
			rs, recs := replay(t, other, log, size)
			if !reflect.DeepEqual(rs, results) || !reflect.DeepEqual(recs, records) {
				t.Errorf("seed %d, %s: other results or records", seed, name)
			}
			if got := dump(t, other.State); got != want {
				t.Errorf("seed %d, %s: other content\n%s", seed, name, firstDifference(got, want))
			}
		}
		if got := crashing(t, rng, log); got != want {
			t.Errorf("seed %d: other content after power cuts\n%s", seed, firstDifference(got, want))
		}
	}
	if commits < 10 {
		t.Errorf("%d restores were committed: a dull test", commits)
	}
}

// crashing replays a log with power cuts in between.
func crashing(t *testing.T, rng *rand.Rand, log []Entry) string {
	t.Helper()
	fs := vfs.NewCrashableMem()
	f := openOn(t, fs)
	for done := 0; done < len(log); {
		n := min(1+rng.IntN(8), len(log)-done)
		if _, err := f.Apply(log[done : done+n]); err != nil {
			t.Fatal(err)
		}
		done += n
		switch rng.IntN(6) {
		case 0:
			if err := f.Witness(log[done-1].Index, log[done-1].Term); err != nil {
				t.Fatal(err)
			}
		case 1:
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(3) * 40, RNG: rng})
			f = openOn(t, fs)
			for done = 0; done < len(log) && log[done].Index <= f.Applied().Index; {
				done++
			}
		}
	}
	return dump(t, f.State)
}

// TestCutStaysAsItIs: a cut shows one moment, with whole entries, while the state goes on; and it ends when the state is
// replaced or closed.
func TestCutStaysAsItIs(t *testing.T) {
	f := source(t)
	want := content(t, f.State)
	c, err := f.Cut()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	applied := f.Applied()
	f.at(20, put("same", "later"), del("empty"), put("new", "n"), drop(ns2), in(ns1, put("big", strings.Repeat("z", 4000))))
	var b strings.Builder
	for _, ns := range c.Namespaces() {
		if err := c.EachKey(ns.ID, func(key string, it *kv.Item) error {
			fmt.Fprintf(&b, "  %q %+v\n", key, *it)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(want) {
		if strings.HasPrefix(line, "  ") && !strings.Contains(b.String(), line) {
			t.Errorf("missing from the cut: %.200s", line)
		}
	}
	if strings.Contains(b.String(), "later") || c.Applied() != applied {
		t.Error("the cut moved")
	}
	if keys, size, err := c.Size(); err != nil || keys != 9 || size <= 65_000 {
		t.Errorf("%d keys, %d bytes, %v", keys, size, err)
	}
	select {
	case <-c.Gone():
		t.Fatal("gone too early")
	default:
	}
	closed := make(chan error, 1)
	go func() { closed <- f.Close() }()
	<-c.Gone()
	if err := c.EachKey(ns1, func(string, *kv.Item) error { return nil }); !errors.Is(err, ErrReplaced) {
		t.Errorf("reading on: %v", err)
	}
	c.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestRestoreRecordDamage(t *testing.T) {
	whole := appendRestore(nil, &restoring{live: 1, phase: RestoreDropping, id: id16(4), replace: true, next: 9, ahead: 5, touched: 7, done: id16(3), doneRev: 8})
	got, err := decodeRestore(whole)
	if err != nil || !bytes.Equal(appendRestore(nil, &got), whole) {
		t.Errorf("%+v, %v", got, err)
	}
	for n := range whole {
		if _, err := decodeRestore(whole[:n]); !errors.Is(err, errCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for at, b := range map[int]byte{0: 2, 1: 2, 2: 3} {
		bad := bytes.Clone(whole)
		bad[at] = b
		if _, err := decodeRestore(bad); !errors.Is(err, errCorrupt) {
			t.Errorf("byte %d is %d: %v", at, b, err)
		}
	}
}

// TestCutHasWholeEntries: whatever is applied while cuts are taken, each has an entry as a whole or not at all.
func TestCutHasWholeEntries(t *testing.T) {
	f := newState(t)
	keys := []string{"a", "b", "c", "d", "e"}
	entry := func(i int) []command.Op {
		var ops []command.Op
		for k, key := range keys {
			ops = append(ops, put(key, strings.Repeat(fmt.Sprint(i, " "), 1+k*100))) // in the head, and apart from it
		}
		return ops
	}
	f.at(1, entry(0)...)
	const entries = 200
	applied := make(chan struct{})
	go func() {
		defer close(applied)
		for i := range entries {
			f.at(2, entry(i+1)...)
		}
	}()
	cuts, last := 0, ""
	for done := false; !done; cuts++ {
		select {
		case <-applied:
			done = true
		default:
		}
		c, err := f.Cut()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		err = c.EachKey(ns1, func(key string, it *kv.Item) error {
			last, _, _ = strings.Cut(string(it.Value), " ")
			seen[last] = true
			if it.Revision <= 1 || it.Revision > c.Applied().Revision {
				t.Errorf("revision %d in a cut at %d", it.Revision, c.Applied().Revision)
			}
			return nil
		})
		c.Close()
		if err != nil || len(seen) != 1 {
			t.Fatalf("parts of several entries: %v, %v", seen, err)
		}
	}
	if last != fmt.Sprint(entries) || cuts < 3 {
		t.Errorf("%d cuts, the last one shows entry %s", cuts, last)
	}
}
