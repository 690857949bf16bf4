package node

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/gossip"
	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// hinter sends change records by gossip, and applies those of others: they mark, and nothing more. Gossip carries a few
// tens of kilobytes a second at the most, so what goes beyond hintBytes a second is left to the feed; then only the newest
// watermark is told, which still shows every node that it lacks something.
type hinter struct {
	gossip *gossip.Gossip
	cache  *cache.Cache
	follow *follower
	log    *slog.Logger
	count  *prometheus.CounterVec

	mu     sync.Mutex // guards the fields below; held for arithmetic only
	tokens float64    // bytes that may be sent now
	filled time.Time
	above  kv.Bookmark   // the newest watermark that is still to be told
	wake   chan struct{} // there is one
}

const (
	// maxHintHashes keeps a hint below gossip's limit of 1 KiB.
	maxHintHashes = 100
	// hintBytes a second are spread by one node; hintBurst may be sent at once.
	hintBytes = 16 << 10
	hintBurst = 32 << 10
	// watermarkEvery is how often the newest watermark is told while hints are held back.
	watermarkEvery = 100 * time.Millisecond
)

func newHinter(log *slog.Logger, reg prometheus.Registerer) *hinter {
	h := &hinter{
		log: log, tokens: hintBurst, wake: make(chan struct{}, 1),
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kvmesh_hints_total", Help: "Change records by gossip: sent, held back for the cap, told as a watermark, applied, of another epoch, unreadable.",
		}, []string{"what"}),
	}
	reg.MustRegister(h.count)
	return h
}

// send spreads a record; one that is too large goes as several that cover the same revisions.
func (h *hinter) send(rec kv.Record) {
	if rec.Kind != kv.RecordNamespace && (rec.Kind != kv.RecordKeys || len(rec.Hashes) == 0) {
		return
	}
	for all := rec.Hashes; ; all = all[maxHintHashes:] {
		rec.Hashes = all[:min(len(all), maxHintHashes)]
		payload := feed.Append(nil, rec)
		if !h.allow(len(payload)) {
			h.holdBack(kv.Bookmark{Epoch: rec.Epoch, Revision: rec.To})
			return
		}
		h.gossip.Hint(payload)
		h.count.WithLabelValues("sent").Inc()
		if len(all) <= maxHintHashes {
			return
		}
	}
}

// allow takes n bytes out of the budget, if they are there.
func (h *hinter) allow(n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if !h.filled.IsZero() {
		h.tokens = min(h.tokens+now.Sub(h.filled).Seconds()*hintBytes, hintBurst)
	}
	h.filled = now
	if h.tokens < float64(n) {
		return false
	}
	h.tokens -= float64(n)
	return true
}

func (h *hinter) holdBack(b kv.Bookmark) {
	h.count.WithLabelValues("held back").Inc()
	h.mu.Lock()
	if c := b.Epoch.Compare(h.above.Epoch); c > 0 || (c == 0 && b.Revision > h.above.Revision) {
		h.above = b
	}
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run tells watermarks until ctx ends.
func (h *hinter) run(ctx context.Context) {
	for {
		select {
		case <-h.wake:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(watermarkEvery):
		case <-ctx.Done():
			return
		}
		h.mu.Lock()
		b := h.above
		h.mu.Unlock()
		h.gossip.Hint(feed.Append(nil, kv.Record{Epoch: b.Epoch, Prev: b.Revision - 1, To: b.Revision, Kind: kv.RecordKeys}))
		h.count.WithLabelValues("watermark").Inc()
	}
}

// heard applies another node's hint.
func (h *hinter) heard(payload []byte) {
	rec, err := feed.Decode(payload)
	switch {
	case err != nil:
		h.count.WithLabelValues("unreadable").Inc()
		h.log.Debug("a hint could not be read", "error", err)
	case !h.cache.Hint(rec):
		h.count.WithLabelValues("refused").Inc() // of another epoch, or claiming too much
	default:
		h.count.WithLabelValues("applied").Inc()
		h.follow.heard(rec.Epoch, rec.To)
	}
}
