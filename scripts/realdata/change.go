package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// longTTL is a cache_ttl that cannot end while this program runs: a new version that is seen under it was announced.
	longTTL = 86400
	// visibleWithin is how long after the last acknowledgement every new version must be read at the other edges.
	visibleWithin = 2 * time.Second
	// hitWithin is how long an edge may take until a key that is read again and again is answered from its memory.
	hitWithin = 30 * time.Second
)

// change is one key that gets a new version.
type change struct {
	expectation // the new version
	old         [sha256.Size]byte
	value       []byte
}

// pick chooses n keys of at most limit bytes, the same ones every time: a tenth of them, as far as there are as many,
// above the size up to which values travel inside log entries.
func pick(want []expectation, n int, limit int64) ([]expectation, error) {
	const inline = 64 << 10
	var small, large []expectation
	for _, w := range want {
		switch {
		case w.size > limit:
		case w.size > inline:
			large = append(large, w)
		default:
			small = append(small, w)
		}
	}
	r := rand.New(rand.NewPCG(20, 26))
	for _, s := range [][]expectation{small, large} {
		r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	}
	large = large[:min(len(large), n/10)]
	if len(small) < n-len(large) {
		return nil, fmt.Errorf("the tree has only %d files of at most %d bytes, %d are needed", len(small)+len(large), limit, n)
	}
	return append(large, small[:n-len(large)]...), nil
}

// warm reads every key at every edge, with the long cache_ttl, until the edge answers it from its own memory.
func (c *client) warm(ctx context.Context, edges []edge, keys []expectation) error {
	ctx, cancel := context.WithTimeoutCause(ctx, hitWithin, fmt.Errorf("not all hits within %v", hitWithin))
	defer cancel()
	var bad failures
	err := forEach(ctx, len(edges)*len(keys), func(i int) {
		e, w := edges[i%len(edges)], keys[i/len(edges)]
		last := "never answered"
		for {
			got, err := c.get(ctx, e, w.key, longTTL)
			switch {
			case err != nil:
				last = err.Error()
			case got.sum != w.sum:
				bad.addf("%s: %q: SHA-256 %x, want %x", e.name, w.key, got.sum, w.sum)
				return
			case got.tier == "hit":
				return
			default:
				last = "Kv-Cache: " + got.tier
			}
			if !pause(ctx, 10*time.Millisecond) {
				bad.addf("%s: %q is no hit after %v of reading it: %s", e.name, w.key, hitWithin, last)
				return
			}
		}
	})
	return errors.Join(err, bad.err("warm"))
}

// visibility is what was measured of a set of changes.
type visibility struct {
	writing  time.Duration // first write sent to last one acknowledged
	p50, max time.Duration // last acknowledgement to the new version read, over edges and keys; 0 when it was there at once
	reads    int
	stale    int // reads that still gave the old version
}

// publish writes every change through from, and then reads all of them at every one of the edges, with the long
// cache_ttl, until all have the new version. It fails when one has not within visibleWithin of the last acknowledgement,
// when something is read that is neither old nor new, and when an edge goes back to the old version.
func (c *client) publish(ctx context.Context, from edge, edges []edge, changes []change) (visibility, error) {
	var v visibility
	var bad failures
	began := time.Now()
	err := forEach(ctx, len(changes), func(i int) {
		if err := c.put(ctx, from, changes[i].key, changes[i].value); err != nil {
			bad.addf("%s: writing %q: %v", from.name, changes[i].key, err)
		}
	})
	acked := time.Now()
	v.writing = acked.Sub(began)
	if err := errors.Join(err, bad.err("change")); err != nil {
		return v, err
	}

	all := make([]*awaited, 0, len(edges)*len(changes))
	for i := range changes {
		for _, e := range edges {
			all = append(all, &awaited{e: e, c: &changes[i]})
		}
	}
	if err := c.await(ctx, acked, all, &v); err != nil {
		return v, err
	}
	var took []time.Duration
	for _, p := range all {
		took = append(took, p.seenAt.Sub(acked))
	}
	slices.Sort(took)
	v.p50, v.max = took[len(took)/2], took[len(took)-1]

	err = forEach(ctx, len(all), func(i int) {
		p := all[i]
		if got, err := c.get(ctx, p.e, p.c.key, longTTL); err != nil || got.sum != p.c.sum {
			bad.addf("%s: %q went back: SHA-256 %x, error %v", p.e.name, p.c.key, got.sum, err)
		}
	})
	return v, errors.Join(err, bad.err("change"))
}

// awaited is one change that has to show at one edge.
type awaited struct {
	e      edge
	c      *change
	seenAt time.Time // zero until then
}

// await reads all until every one has its new version, at most visibleWithin after acked.
func (c *client) await(ctx context.Context, acked time.Time, all []*awaited, v *visibility) error {
	until, cancel := context.WithDeadlineCause(ctx, acked.Add(visibleWithin), fmt.Errorf("%v have passed", visibleWithin))
	defer cancel()
	var bad failures
	var reads, stale atomic.Int64
	pending := slices.Clone(all)
	for len(pending) > 0 && bad.err("") == nil {
		err := forEach(until, len(pending), func(i int) {
			p := pending[i]
			got, err := c.get(until, p.e, p.c.key, longTTL)
			now := time.Now()
			reads.Add(1)
			switch {
			case err != nil && until.Err() != nil: // the deadline, told below for all that are left
			case err != nil:
				bad.addf("%s: %q: %v", p.e.name, p.c.key, err)
			case got.sum == p.c.old:
				stale.Add(1)
			case got.sum != p.c.sum:
				bad.addf("%s: %q has SHA-256 %x, neither the old version nor the new one", p.e.name, p.c.key, got.sum)
			case now.Before(acked.Add(visibleWithin)):
				p.seenAt = now
			}
		})
		pending = slices.DeleteFunc(pending, func(p *awaited) bool { return !p.seenAt.IsZero() })
		if err != nil || (len(pending) > 0 && !pause(until, 5*time.Millisecond)) {
			break
		}
	}
	v.reads, v.stale = int(reads.Load()), int(stale.Load())
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if until.Err() != nil {
		for _, p := range pending {
			bad.addf("%s: %q has no new version %v after the last acknowledgement", p.e.name, p.c.key, visibleWithin)
		}
	}
	return bad.err("change")
}
