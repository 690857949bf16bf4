package raftstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/command"
)

var powerCuts = flag.Int("powercuts", 300, "how often TestPowerCuts cuts the power")

// TestPowerCuts cuts the power of a voter under load at random moments: before any change of the state's file system or of
// the log, while it starts too. The log keeps what it was given, the file system what was synced and sometimes a
// random part of the rest. Whatever was acknowledged is there afterwards, and no entry is applied in part: every write sets two keys
// to one number.
func TestPowerCuts(t *testing.T) {
	const cutsPerMachine = 25
	acks := 0
	for done, seed := 0, uint64(0); done < *powerCuts; done, seed = done+cutsPerMachine, seed+1 {
		virtual(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 7))
			p := newPowerTest(t, rng)
			for range min(cutsPerMachine, *powerCuts-done) {
				p.run(1 + rng.IntN(1+rng.IntN(500)))
			}
			p.run(never)
			for _, n := range p.acked {
				acks += n
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d power cuts, %d acknowledged writes", *powerCuts, acks)
	if acks < 5**powerCuts {
		t.Error("too few writes were acknowledged: the test proves little")
	}
}

const never = 0

// machine is what the power is cut of. After the cut the process goes on unheard, on the disk that it had, so that nothing
// in it has to cope with a disk that vanishes; what the cut has left is another machine.
type machine struct {
	disk *vfs.MemFS
	// A disk either forgets whatever was not synced by name, or it has a journal, as the file systems of Linux do: to sync a
	// file there writes all earlier changes of directories (Pebble needs that order when more than the least survives), and a
	// random part of everything else is kept.
	journal bool
	log     memoryLog
	rng     *rand.Rand

	// Changes of the log and notes of acknowledgements hold moment shared, the cut holds it alone: log, file system and
	// acknowledgements are copied as they are at one moment.
	moment sync.RWMutex
	stable map[string]any // what the log's stable store holds
	acked  map[string]int // by writer: the newest number that somebody could have seen acknowledged
	after  *machine       // what the cut has left; nil before it

	count sync.Mutex // guards left
	left  int        // changes until the cut
}

func (m *machine) cutAfter(changes int) {
	m.count.Lock()
	defer m.count.Unlock()
	m.left = changes
}

// changing is called before every change, without a lock.
func (m *machine) changing() {
	m.count.Lock()
	m.left--
	due := m.left == 0
	m.count.Unlock()
	if !due {
		return
	}
	m.moment.Lock()
	defer m.moment.Unlock()
	keep := vfs.CrashCloneCfg{}
	if m.journal {
		keep = vfs.CrashCloneCfg{UnsyncedDataPercent: m.rng.IntN(3) * 45, RNG: m.rng}
	}
	m.after = &machine{
		disk: m.disk.CrashClone(keep), journal: m.journal,
		log: memoryLog{raft.NewInmemStore()}, rng: m.rng, stable: maps.Clone(m.stable), acked: maps.Clone(m.acked),
	}
	m.copyLog(m.after.log)
}

// copyLog cannot fail, because both logs are in memory.
func (m *machine) copyLog(to memoryLog) {
	first, _ := m.log.FirstIndex()
	last, _ := m.log.LastIndex()
	for i := max(first, 1); i <= last; i++ {
		e := new(raft.Log)
		if m.log.GetLog(i, e) == nil {
			_ = to.StoreLog(e)
		}
	}
	for k, v := range m.stable {
		switch v := v.(type) {
		case uint64:
			_ = to.SetUint64([]byte(k), v)
		case []byte:
			_ = to.Set([]byte(k), v)
		}
	}
}

func (m *machine) isCut() *machine {
	m.moment.RLock()
	defer m.moment.RUnlock()
	return m.after
}

func (m *machine) ack(writer string, n int) {
	m.moment.Lock()
	defer m.moment.Unlock()
	m.acked[writer] = n
}

// fs is the file system of the state. Reading changes nothing, so a cut before it is one before the next change.
func (m *machine) fs() vfs.FS {
	return errorfs.Wrap(m.disk, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		m.changing()
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if m.journal {
				return syncDir(m.disk, m.disk.PathDir(op.Path))
			}
		}
		return nil
	}))
}

// powerLog is the log of a machine.
type powerLog struct {
	memoryLog
	m *machine
}

func (l powerLog) change(fn func() error) error {
	l.m.changing()
	l.m.moment.RLock()
	defer l.m.moment.RUnlock()
	return fn()
}

func (l powerLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l powerLog) StoreLogs(es []*raft.Log) error {
	return l.change(func() error { return l.memoryLog.StoreLogs(es) })
}

func (l powerLog) DeleteRange(lo, hi uint64) error {
	return l.change(func() error { return l.memoryLog.DeleteRange(lo, hi) })
}

func (l powerLog) Set(key, val []byte) error {
	return l.remember(string(key), val, func() error { return l.memoryLog.Set(key, val) })
}

func (l powerLog) SetUint64(key []byte, val uint64) error {
	return l.remember(string(key), val, func() error { return l.memoryLog.SetUint64(key, val) })
}

func (l powerLog) remember(key string, val any, set func() error) error {
	l.m.changing()
	l.m.moment.Lock()
	defer l.m.moment.Unlock()
	l.m.stable[key] = val
	return set()
}

// powerTest drives one voter from cut to cut.
type powerTest struct {
	*cluster
	*machine
	dice  *rand.Rand     // the driver's; a machine has its own, under its lock
	tried map[string]int // by writer: the highest number that was ever proposed
}

var powerWriters = []string{"x", "y", "z"}

func newPowerTest(t *testing.T, rng *rand.Rand) *powerTest {
	p := &powerTest{
		cluster: newCluster(t, "a"), dice: rng, tried: make(map[string]int),
		machine: &machine{
			disk: vfs.NewCrashableMem(), journal: rng.IntN(2) == 0, log: memoryLog{raft.NewInmemStore()},
			rng:    rand.New(rand.NewPCG(rng.Uint64(), 3)),
			stable: make(map[string]any), acked: make(map[string]int),
		},
	}
	for dir := p.dirs["a"]; dir != "/"; dir = filepath.Dir(dir) { // what is above the data directory survives anyway
		if err := errors.Join(p.disk.MkdirAll(dir, 0o700), syncDir(p.disk, filepath.Dir(dir))); err != nil {
			t.Fatal(err)
		}
	}
	set, err := ProfileTest.settings()
	if err != nil {
		t.Fatal(err)
	}
	set.snapshotBytes, set.snapshotEntries, set.trailingBytes, set.trailingEntries = 16<<10, 16, 4<<10, 8
	p.adapt = func(_ string, o *Options) {
		m := p.machine
		o.settings, o.FS = &set, m.fs()
		o.LogStore = func(string) (Log, error) { return powerLog{m.log, m}, nil }
	}
	return p
}

// run starts the voter on what the last cut has left, looks at it, and writes until the next cut, or not at all.
func (p *powerTest) run(changes int) {
	p.cutAfter(changes)
	s := p.open("a")
	defer p.stop("a")
	begun, err := s.Bootstrapped()
	if err != nil {
		p.t.Fatal(err)
	}
	if !begun { // the first time, or after a cut in the bootstrap itself
		if err := s.Bootstrap([]string{"a"}); err != nil {
			p.t.Fatal(err)
		}
	}
	p.check(p.leader())
	if changes == never {
		return
	}
	var writers sync.WaitGroup
	tried := make([]int, len(powerWriters))
	for i, writer := range powerWriters {
		rng := rand.New(rand.NewPCG(p.dice.Uint64(), 1))
		writers.Go(func() {
			n := p.tried[writer]
			for p.isCut() == nil && !p.t.Failed() {
				n++
				p.write(s, writer, n, rng)
			}
			tried[i] = n
		})
	}
	writers.Wait()
	for i, writer := range powerWriters {
		p.tried[writer] = tried[i]
	}
	if after := p.isCut(); after != nil {
		p.machine = after
	}
}

// write sets the two keys of a writer to n, in one entry.
func (p *powerTest) write(s *Store, writer string, n int, rng *rand.Rand) {
	value := fmt.Sprintf("%d:%s", n, strings.Repeat("v", rng.IntN(1+rng.IntN(3000))))
	ctx, cancel := context.WithTimeout(p.t.Context(), 10*time.Second)
	defer cancel()
	res, err := s.Propose(ctx, []command.Op{p.put("1"+writer, value), p.put("2"+writer, value)})
	if err != nil || res.Ops[0].Code != "" || res.Ops[1].Code != "" {
		p.t.Errorf("writer %s, %d: %+v, %v", writer, n, res, err)
		return
	}
	p.ack(writer, n)
}

func (p *powerTest) check(s *Store) {
	keys := int64(0)
	for _, writer := range powerWriters {
		one, two := p.number(s, "1"+writer), p.number(s, "2"+writer)
		if one != two {
			p.t.Errorf("an entry was applied in part: writer %s has %d and %d", writer, one, two)
		}
		if one < p.acked[writer] || one > p.tried[writer] {
			p.t.Errorf("writer %s has %d; %d was acknowledged, %d was tried", writer, one, p.acked[writer], p.tried[writer])
		}
		if one > 0 {
			keys += 2
		}
	}
	if stats, err := s.State().NamespaceStats(p.ns); err != nil || stats.Keys != keys {
		p.t.Errorf("%d keys are there, counted are %+v (%v)", keys, stats, err)
	}
}

// number is what a key was set to, 0 if it is not there.
func (p *powerTest) number(s *Store, key string) int {
	item, _, err := s.State().Get(p.ns, key, false)
	if err == nil && item.Absent {
		return 0
	}
	digits, _, _ := strings.Cut(string(item.Value), ":")
	n, convErr := strconv.Atoi(digits)
	if err != nil || convErr != nil {
		p.t.Errorf("%s holds %.20q: %v", key, item.Value, errors.Join(err, convErr))
	}
	return n
}
