package api

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"kvmesh/raftstore/kv"
)

const (
	// headerTiming asks, with the value 1, where the time of a request went.
	headerTiming = "Kv-Timing"
	// headerServerTiming says it, in the syntax of the W3C's Server Timing.
	headerServerTiming = "Server-Timing"
)

// The parts of a request's time.
const (
	TimingCache  = "cache"  // looking a key up in this node's memory, and judging what was found
	TimingFill   = "fill"   // waiting for other tiers
	TimingOpen   = "open"   // opening a value that is streamed
	TimingBody   = "body"   // taking the value in, and, of a large one, putting it on the disks of a quorum of voters
	TimingCommit = "commit" // having the write committed, from proposing it to its result in this node's cache
	timingTotal  = "total"  // from the request's head to the head of its answer
)

// Timing collects where the time of one request went, for a client that asked. It is for one goroutine. A nil Timing
// collects nothing: that is the one of all other requests.
type Timing struct {
	began time.Time
	parts []timingPart
}

type timingPart struct {
	name, desc string
	took       time.Duration
}

// Add adds a part; an empty desc is left out. Name and desc are words: letters, digits, - and _.
func (t *Timing) Add(name, desc string, took time.Duration) {
	if t != nil {
		t.parts = append(t.parts, timingPart{name, desc, took})
	}
}

// Now is the present time, for Since. When nothing is collected, no clock is read.
func (t *Timing) Now() time.Time {
	if t == nil {
		return time.Time{}
	}
	return time.Now()
}

// Since is Add with what has passed since began.
func (t *Timing) Since(name, desc string, began time.Time) {
	if t != nil {
		t.Add(name, desc, time.Since(began))
	}
}

// header is the value of Server-Timing: milliseconds, with three decimals.
func (t *Timing) header() string {
	var b []byte
	for _, p := range append(t.parts, timingPart{name: timingTotal, took: time.Since(t.began)}) {
		if len(b) > 0 {
			b = append(b, ", "...)
		}
		b = append(b, p.name+";dur="...)
		b = strconv.AppendFloat(b, float64(p.took.Nanoseconds())/1e6, 'f', 3, 64)
		if p.desc != "" {
			b = append(b, ";desc="+p.desc...)
		}
	}
	return string(b)
}

// set writes the header of an answer whose head is about to be sent. The answer is for whoever asked, and for nobody whom
// a cache in between would give it to.
func (t *Timing) set(h http.Header) {
	h.Set(headerServerTiming, t.header())
	h.Set("Cache-Control", "no-store")
}

// askedTiming is the Timing of a request, nil when it does not ask for one.
func askedTiming(r *http.Request, began time.Time) (*Timing, error) {
	asked, ok := r.Header[headerTiming]
	if !ok {
		return nil, nil
	}
	if !slices.Equal(asked, []string{"1"}) {
		return nil, kv.FieldErrorf(kv.CodeInvalidParameter, headerTiming, "%s takes 1; leave it out if you do not want to know", headerTiming)
	}
	return &Timing{began: began}, nil
}
