package cache

import "github.com/prometheus/client_golang/prometheus"

// metrics are the cache's own counters. None carries a key or a namespace.
type metrics struct {
	hits, joins, joinsRefused, waits, evictions, epochs, hintsDisproved, noted prometheus.Counter
	stale, refills, fills, late, large                                         *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		if reg != nil {
			reg.MustRegister(c)
		}
		return c
	}
	return &metrics{
		hits:         counter("kvmesh_cache_hits_total", "Reads answered from an unmarked entry within its limit."),
		joins:        counter("kvmesh_fill_joins_total", "Readers that joined a running fill."),
		joinsRefused: counter("kvmesh_fill_joins_refused_total", "Results of joined fills that did not satisfy the reader."),
		waits:        counter("kvmesh_reads_waiting_on_fill_total", "Reads that had to wait for a fill."),
		evictions:    counter("kvmesh_cache_evictions_total", "Entries evicted for room."),
		epochs:       counter("kvmesh_epochs_adopted_total", "Epochs adopted."),
		hintsDisproved: counter("kvmesh_hints_disproved_total",
			"Fills for which gossip had demanded a revision that the leader did not know."),
		noted: counter("kvmesh_cache_revisions_noted_total",
			"Revisions beyond the watermark that were noted for keys not held, at an eviction or beside a fill."),
		late: vec("kvmesh_fills_late_total",
			"Fills and writes that a later change had overtaken when they were to be stored, by what became of them.", "outcome"),
		stale: vec("kvmesh_stale_served_total", "Reads answered from an old entry, by why.", "why"),
		large: vec("kvmesh_large_reads_total",
			"Reads of values above 1 MiB: found in memory, loaded into it, or streamed (for the first time, or without room).", "result"),
		refills: vec("kvmesh_refills_total", "Hot entries that changed: refilled at once, or left to the next reader.", "result"),
		fills:   vec("kvmesh_fills_total", "Questions to other tiers.", "tier", "result"),
	}
}

// observe registers the gauges that read the cache itself.
func (m *metrics) observe(reg prometheus.Registerer, c *Cache) {
	if reg == nil {
		return
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	gauge("kvmesh_cache_bytes", "Memory taken by entries, bookkeeping included.", func() float64 { return float64(c.Stats().Bytes) })
	gauge("kvmesh_cache_entries", "Entries held, known absences included.", func() float64 {
		s := c.Stats()
		return float64(s.Entries + s.AbsentEntries)
	})
	gauge("kvmesh_watermark_revision", "W: every change up to this revision has been applied to the cache.", func() float64 {
		_, w := c.Position()
		return float64(w)
	})
	gauge("kvmesh_feed_proof_age_seconds", "How long ago F is: the node was proven current then; -1 when nothing is proven.", func() float64 {
		if _, _, f, ok := c.Proof(); ok {
			return (c.Now() - f).Seconds()
		}
		return -1
	})
}
