//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	// Fewer than this during faults prove nothing.
	leastAcked, leastStrong = 1000, 100
	// checkLimit bounds the check of one pair of keys. A check that does not end fails.
	checkLimit = 60 * time.Second
	maxShown   = 12
)

// result is everything that is known at the end.
type result struct {
	faults   []fault
	events   []event
	findings []finding
	verdicts []verdict
	odd      []string
	oddN     int
	checked  time.Duration

	acked, ackedIn, unknown, refused, conflicts int
	strong, strongIn, cached                    int
	refusals                                    map[string]int
}

// judge checks the whole history.
func (s *session) judge(faults []fault) *result {
	began := time.Now()
	history := s.rec.history()
	s.mu.Lock()
	r := &result{faults: faults, events: slices.Clone(s.events), refusals: make(map[string]int)}
	s.mu.Unlock()
	r.odd, r.oddN = s.rec.oddities()
	r.count(history)
	r.findings = audit(history)
	p := newSpec(history)
	pairs := make(map[int][]*op)
	for _, o := range history {
		pairs[o.pair] = append(pairs[o.pair], o)
	}
	var mu sync.Mutex // guards r.verdicts
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2) // a check takes memory, and there is not more to win on two cores
	for pair, ops := range pairs {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			v := p.checkPair(pair, ops, checkLimit)
			if v.result == porcupine.Illegal && v.why == "" {
				v.why = p.explain(ops, checkLimit)
			}
			mu.Lock()
			defer mu.Unlock()
			r.verdicts = append(r.verdicts, v)
		})
	}
	wg.Wait()
	slices.SortFunc(r.verdicts, func(a, b verdict) int { return a.pair - b.pair })
	r.checked = time.Since(began)
	return r
}

func (r *result) count(history []*op) {
	during := func(o *op) bool {
		return slices.ContainsFunc(r.events, func(e event) bool { return o.ret >= e.begin && o.ret <= e.back })
	}
	for _, o := range history {
		switch {
		case o.isWrite() && o.outcome == done:
			r.acked++
			if during(o) {
				r.ackedIn++
			}
		case o.outcome == unknown:
			r.unknown++
		case o.outcome == refused:
			r.refused++
			r.refusals[o.code]++
		case o.outcome == conflict:
			r.conflicts++
		case o.cached:
			r.cached++
		default:
			r.strong++
			if during(o) {
				r.strongIn++
			}
		}
	}
}

// lost and violations are what was found; the checker's verdicts count as violations too.
func (r *result) lost() int {
	n := 0
	for _, f := range r.findings {
		if f.kind == kindLost {
			n++
		}
	}
	return n
}

func (r *result) illegal() (illegal, unknown int) {
	for _, v := range r.verdicts {
		switch v.result {
		case porcupine.Illegal:
			illegal++
		case porcupine.Unknown:
			unknown++
		}
	}
	return illegal, unknown
}

// err says whether the run proves what it should. A part of the faults is enough when partial.
func (r *result) err(partial bool) error {
	var errs []error
	illegal, unknown := r.illegal()
	if n := len(r.findings); n > 0 {
		errs = append(errs, fmt.Errorf("%d broken promises", n))
	}
	if illegal > 0 {
		errs = append(errs, fmt.Errorf("%d histories are not linearizable", illegal))
	}
	if unknown > 0 {
		errs = append(errs, fmt.Errorf("%d histories could not be checked within %v", unknown, checkLimit))
	}
	if r.oddN > 0 {
		errs = append(errs, fmt.Errorf("%d answers that no fault explains", r.oddN))
	}
	if !partial {
		if r.ackedIn < leastAcked || r.strongIn < leastStrong {
			errs = append(errs, fmt.Errorf("%d acknowledged writes and %d strong reads during faults prove too little; at least %d and %d are needed",
				r.ackedIn, r.strongIn, leastAcked, leastStrong))
		}
		for _, f := range r.faults {
			if n, _, _ := r.of(f.name); n == 0 {
				errs = append(errs, fmt.Errorf("the fault %q did not happen", f.name))
			}
		}
	}
	return errors.Join(errs...)
}

// of sums up the events of one kind: how often it happened, in how many of these by itself, and the longest gap of those.
func (r *result) of(name string) (n, single int, gap time.Duration) {
	for _, e := range r.events {
		if e.name != name || e.err != nil && !e.mixed {
			continue
		}
		n++
		if !e.mixed {
			single++
			gap = max(gap, e.gap)
		}
	}
	return n, single, gap
}

func (r *result) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-42s %5s %6s  %s\n", "fault", "times", "alone", "longest write gap when alone")
	for _, f := range r.faults {
		n, single, gap := r.of(f.name)
		text := "-"
		if single > 0 {
			text = fmt.Sprintf("%.2f s", gap.Seconds())
		}
		if f.stops {
			text += "  (takes the quorum away)"
		}
		fmt.Fprintf(w, "%-42s %5d %6d  %s\n", f.name, n, single, text)
	}
	illegal, undecided := r.illegal()
	most, open := 0, 0
	for _, v := range r.verdicts {
		most, open = max(most, v.ops), open+v.open
	}
	fmt.Fprintf(w, "\n%-42s %8d   %d of them during faults\n", "writes acknowledged", r.acked, r.ackedIn)
	fmt.Fprintf(w, "%-42s %8d\n", "writes of unknown outcome", r.unknown)
	fmt.Fprintf(w, "%-42s %8d  %s\n", "writes refused", r.refused, tally(r.refusals))
	fmt.Fprintf(w, "%-42s %8d\n", "conditions that did not hold", r.conflicts)
	fmt.Fprintf(w, "%-42s %8d   %d of them during faults\n", "strong reads", r.strong, r.strongIn)
	fmt.Fprintf(w, "%-42s %8d\n", "cached reads", r.cached)
	fmt.Fprintf(w, "%-42s %8d   the longest of %d operations, %d open ones considered, %v\n", "histories checked with porcupine",
		len(r.verdicts), most, open, r.checked.Round(time.Millisecond))
	fmt.Fprintf(w, "%-42s %8d\n", "  not linearizable", illegal)
	fmt.Fprintf(w, "%-42s %8d\n", "  undecided", undecided)
	fmt.Fprintf(w, "%-42s %8d\n", "acknowledged writes lost", r.lost())
	fmt.Fprintf(w, "%-42s %8d   %s\n", "other violations", len(r.findings)-r.lost(), tally(r.kinds()))
	fmt.Fprintf(w, "%-42s %8d\n", "answers that no fault explains", r.oddN)
	r.details(w)
}

func (r *result) kinds() map[string]int {
	kinds := make(map[string]int)
	for _, f := range r.findings {
		if f.kind != kindLost {
			kinds[f.kind]++
		}
	}
	return kinds
}

func (r *result) details(w io.Writer) {
	for i, f := range r.findings {
		if i == maxShown {
			fmt.Fprintf(w, "  ... and %d more\n", len(r.findings)-i)
			break
		}
		fmt.Fprintf(w, "%s: %s\n", f.kind, f.text)
	}
	for _, v := range r.verdicts {
		if v.result != porcupine.Ok {
			fmt.Fprintf(w, "pair %d: %s (%d operations, %d open)\n%s\n", v.pair, v.result, v.ops, v.open, v.why)
		}
	}
	for _, t := range r.odd {
		fmt.Fprintf(w, "odd: %s\n", t)
	}
}

func tally(counts map[string]int) string {
	var parts []string
	for name, n := range counts {
		parts = append(parts, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}
