//go:build linux

package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// story builds histories of pair 0 by hand. Times are in steps of one second, so that bounds can be told in them.
type story struct{ ops []*op }

const step1 = int64(time.Second)

func (s *story) add(o op, call, ret int64) *op {
	o.id = uint32(len(s.ops) + 1)
	o.call, o.ret = call*step1, ret*step1
	if o.node == "" {
		o.node = "n"
	}
	for i := range o.keys {
		if o.keys[i].does == write {
			o.keys[i].value = o.id
		}
	}
	s.ops = append(s.ops, &o)
	return &o
}

func (s *story) put(call, ret int64, rev uint64) *op {
	return s.add(op{keys: [2]touch{{does: write, rev: rev}}, asOf: rev}, call, ret)
}

func (s *story) lostAnswer(call, ret int64) *op {
	return s.add(op{keys: [2]touch{{does: write}}, outcome: unknown}, call, ret)
}

func (s *story) del(call, ret int64, rev uint64) *op {
	return s.add(op{keys: [2]touch{{does: remove, rev: rev}}, asOf: rev}, call, ret)
}

// get is a strong read of what w wrote, nil for nothing, in a state at revision asOf.
func (s *story) get(call, ret int64, w *op, rev, asOf uint64) *op {
	o := op{keys: [2]touch{{does: look, rev: rev}}, asOf: asOf}
	if w != nil {
		o.keys[0].value = w.id
	}
	return s.add(o, call, ret)
}

// cas is a put that demands a revision; met is what it met when that is another one.
func (s *story) cas(call, ret int64, expect, rev uint64, failed bool) *op {
	o := op{keys: [2]touch{{does: write, demand: whenRevision, expect: expect, rev: rev}}, asOf: rev}
	if failed {
		o.outcome, o.asOf, o.keys[0].failed = conflict, 0, true
	}
	return s.add(o, call, ret)
}

// both writes both keys, if the first is at a revision.
func (s *story) both(call, ret int64, expect, rev uint64, out outcome) *op {
	o := op{outcome: out, keys: [2]touch{
		{does: write, demand: whenRevision, expect: expect, rev: rev}, {does: write},
	}, asOf: rev}
	if out == done {
		o.keys[1].rev = rev + 1
	}
	return s.add(o, call, ret)
}

func kinds(found []finding) string {
	var all []string
	for _, f := range found {
		all = append(all, f.kind)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// Each story is told to the checker and to the audit.
func TestStories(t *testing.T) {
	for name, tc := range map[string]struct {
		tell  func(s *story)
		check porcupine.CheckResult
		audit string
	}{
		"in order": {func(s *story) {
			a := s.put(0, 1, 5)
			s.get(2, 3, a, 5, 5)
			b := s.put(4, 5, 6)
			s.get(6, 7, b, 6, 9)
			s.del(8, 9, 10)
			s.get(10, 11, nil, 0, 10)
		}, porcupine.Ok, ""},
		"a stale read": {func(s *story) {
			a := s.put(0, 1, 5)
			s.put(2, 3, 6)
			s.get(4, 5, a, 5, 5)
		}, porcupine.Illegal, "stale"},
		"a read that overlaps the write may see either": {func(s *story) {
			a := s.put(0, 1, 5)
			b := s.put(2, 6, 6)
			s.get(3, 4, a, 5, 5)
			s.get(3, 4, b, 6, 6)
		}, porcupine.Ok, ""},
		"back in time within an overlapping write": {func(s *story) {
			a := s.put(0, 1, 5)
			b := s.put(2, 9, 6)
			s.get(3, 4, b, 6, 6)
			s.get(5, 6, a, 5, 5)
		}, porcupine.Illegal, "stale"},
		"a lost write": {func(s *story) {
			a := s.put(0, 1, 5)
			s.put(2, 3, 6)
			s.get(4, 5, a, 5, 8)
		}, porcupine.Illegal, "lost"},
		"a lost first write": {func(s *story) {
			s.put(0, 1, 5)
			s.get(2, 3, nil, 0, 8)
		}, porcupine.Illegal, "lost"},
		"a stale absence": {func(s *story) {
			s.put(0, 1, 5)
			s.get(2, 3, nil, 0, 4)
		}, porcupine.Illegal, "stale"},
		"a revision given twice": {func(s *story) {
			s.put(0, 1, 5)
			s.put(2, 3, 5)
		}, porcupine.Illegal, "lost twice"},
		"revisions against time": {func(s *story) {
			s.put(0, 1, 5)
			s.put(2, 3, 4)
		}, porcupine.Illegal, "stale"},
		"a deletion that did not stay": {func(s *story) {
			a := s.put(0, 1, 5)
			s.del(2, 3, 6)
			s.get(4, 5, a, 5, 6)
		}, porcupine.Illegal, "lost"},
		"a deletion that says that there was nothing": {func(s *story) {
			s.put(0, 1, 5)
			s.del(2, 3, 0)
		}, porcupine.Illegal, ""},
		"an unknown write that was never seen": {func(s *story) {
			a := s.put(0, 1, 5)
			s.lostAnswer(2, 3)
			s.get(4, 5, a, 5, 5)
			s.get(90, 91, a, 5, 5)
		}, porcupine.Ok, ""},
		"an unknown write that lands long after its client gave up": {func(s *story) {
			a := s.put(0, 1, 5)
			u := s.lostAnswer(2, 3)
			s.get(4, 5, a, 5, 5)
			s.get(90, 91, u, 6, 6)
		}, porcupine.Ok, ""},
		"an unknown write that comes and goes": {func(s *story) {
			a := s.put(0, 1, 5)
			u := s.lostAnswer(2, 3)
			s.get(4, 5, u, 6, 6)
			s.get(6, 7, a, 5, 6)
		}, porcupine.Illegal, "stale"},
		"an unknown write that only a condition met": {func(s *story) {
			s.put(0, 1, 5)
			s.lostAnswer(2, 3)
			s.cas(4, 5, 5, 6, true)
		}, porcupine.Ok, ""},
		"a condition that met what nobody wrote": {func(s *story) {
			s.put(0, 1, 5)
			s.cas(4, 5, 5, 6, true)
		}, porcupine.Illegal, ""},
		"a condition that failed although it held": {func(s *story) {
			s.put(0, 1, 5)
			s.cas(2, 3, 5, 5, true)
		}, porcupine.Illegal, ""},
		"two conditional writes of one revision": {func(s *story) {
			s.put(0, 1, 5)
			s.cas(2, 5, 5, 6, false)
			s.cas(2, 5, 5, 7, false)
		}, porcupine.Illegal, ""},
		"a refused write that was read": {func(s *story) {
			s.put(0, 1, 5)
			r := s.put(2, 3, 0)
			r.outcome = refused
			s.get(4, 5, r, 6, 6)
		}, porcupine.Illegal, "refused"},
		"a value out of nowhere": {func(s *story) {
			s.get(0, 1, &op{id: 77}, 6, 6)
		}, porcupine.Illegal, "phantom"},
		"a transaction, whole": {func(s *story) {
			s.put(0, 1, 5)
			b := s.both(2, 3, 5, 6, done)
			s.get(4, 5, b, 6, 9)
			s.add(op{keys: [2]touch{{}, {does: look, value: b.id, rev: 7}}, asOf: 9}, 4, 5)
		}, porcupine.Ok, ""},
		"a transaction, half": {func(s *story) {
			s.put(0, 1, 5)
			b := s.both(2, 3, 5, 6, done)
			s.get(4, 5, b, 6, 9)
			s.add(op{keys: [2]touch{{}, {does: look}}, asOf: 9}, 4, 5)
		}, porcupine.Illegal, "lost"},
		"a transaction that names one of two conditions that fail": {func(s *story) {
			s.put(0, 1, 5)
			s.add(op{outcome: conflict, keys: [2]touch{
				{does: write, demand: whenRevision, expect: 4, failed: true, rev: 5}, {does: check, demand: whenPresent},
			}}, 2, 3)
		}, porcupine.Illegal, ""},
		"half of a transaction of unknown outcome": {func(s *story) {
			s.put(0, 1, 5)
			b := s.both(2, 3, 5, 0, unknown)
			s.get(4, 5, b, 6, 9)
			s.add(op{keys: [2]touch{{}, {does: look}}, asOf: 9}, 6, 7)
		}, porcupine.Illegal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := &story{}
			tc.tell(s)
			if v := newSpec(s.ops).checkPair(0, s.ops, time.Minute); v.result != tc.check {
				t.Errorf("the checker says %s (%s), want %s", v.result, v.why, tc.check)
			}
			if got := kinds(audit(s.ops)); got != tc.audit {
				t.Errorf("the audit found %q, want %q: %v", got, tc.audit, audit(s.ops))
			}
		})
	}
}

// What a cached read states about itself is held against the truth.
func TestAuditOfCachedReads(t *testing.T) {
	cached := func(call, ret int64, w *op, staleness int64, bookmark, asOf uint64, node string) op {
		o := op{cached: true, node: node, staleness: staleness * step1, bookmark: bookmark, asOf: asOf, tier: "hit"}
		o.keys[0] = touch{does: look}
		if w != nil {
			o.keys[0].value, o.keys[0].rev = w.id, w.keys[0].rev
		}
		o.call, o.ret = call, ret
		return o
	}
	for name, tc := range map[string]struct {
		read  op // of the first of two values, acknowledged at 1 and at 11
		read2 *op
		want  string
	}{
		"just as old as it says":            {cached(15, 16, nil, 4, 0, 0, "x"), nil, ""},
		"older than it says":                {cached(15, 16, nil, 3, 0, 0, "x"), nil, "bound"},
		"without a bound":                   {cached(15, 16, nil, -1, 0, 0, "x"), nil, ""},
		"a bookmark of before":              {cached(15, 16, nil, -1, 5, 5, "x"), nil, ""},
		"a bookmark that covers the second": {cached(15, 16, nil, -1, 6, 0, "x"), nil, "bookmark"},
		"an answer that claims to know it":  {cached(15, 16, nil, -1, 0, 6, "x"), nil, "bookmark"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &story{}
			a := s.put(0, 1, 5)
			s.put(10, 11, 6)
			tc.read.keys[0].value, tc.read.keys[0].rev = a.id, 5
			s.add(tc.read, tc.read.call, tc.read.ret)
			if got := kinds(audit(s.ops)); got != tc.want {
				t.Errorf("found %q, want %q: %v", got, tc.want, audit(s.ops))
			}
			if v := newSpec(s.ops).checkPair(0, s.ops, time.Minute); v.result != porcupine.Ok {
				t.Errorf("the checker judges a cached read: %s", v.result)
			}
		})
	}
	for _, tc := range []struct{ first, second, want string }{{"x", "x", "back"}, {"x", "y", ""}} {
		s := &story{}
		a := s.put(0, 1, 5)
		b := s.put(10, 11, 6)
		s.add(cached(12, 13, b, -1, 0, 0, tc.first), 12, 13)
		s.add(cached(14, 15, a, -1, 0, 0, tc.second), 14, 15)
		if got := kinds(audit(s.ops)); got != tc.want {
			t.Errorf("nodes %s and %s: found %q, want %q", tc.first, tc.second, got, tc.want)
		}
	}
}

func TestValuesNameTheirWriter(t *testing.T) {
	for _, size := range []int{0, 1, 9, 50, 4096, 100_000} {
		v := makeValue(4711, size)
		if id, ok := parseValue(v); !ok || id != 4711 || len(v) < size {
			t.Errorf("size %d: %d, %v", size, id, ok)
		}
		v[len(v)-1] ^= 1
		if _, ok := parseValue(v); ok {
			t.Errorf("size %d: a flipped bit was not seen", size)
		}
	}
	for _, bad := range []string{"", ":", "1", "x:1:", "1:x:", "1:-5:", "1:9999999999:"} {
		if id, ok := parseValue([]byte(bad)); ok {
			t.Errorf("%q counts as the value of %d", bad, id)
		}
	}
}

func TestLongestGap(t *testing.T) {
	r := newRecorder()
	r.acks = []int64{5, 12, 30, 33, 80}
	for _, tc := range []struct{ from, to, want int64 }{{10, 40, 18}, {10, 100, 47}, {81, 100, 19}, {0, 4, 4}} {
		if got := r.longestGap(tc.from, tc.to); int64(got) != tc.want {
			t.Errorf("longestGap(%d, %d) = %d, want %d", tc.from, tc.to, got, tc.want)
		}
	}
}
