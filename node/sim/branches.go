package sim

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// branches counts how often each branch of the protocol was taken, so that a simulation that never came to one says so.
type branches struct {
	mu sync.Mutex // guards n
	n  map[string]float64
}

func newBranches() *branches { return &branches{n: make(map[string]float64)} }

func (b *branches) add(name string, n float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.n[name] += n
}

func (b *branches) write(err error) {
	name := "write ok"
	if err != nil {
		name = "write " + string(kv.CodeOf(err))
	}
	b.add(name, 1)
}

func (b *branches) read(v *api.Value, k api.Consistency, err error) {
	level := "default"
	switch {
	case k.Strong:
		level = "strong"
	case k.Bounded:
		level = "bounded"
	case k.Bookmark.Revision > 0:
		level = "bookmark"
	}
	what := ""
	switch {
	case err != nil:
		what = string(kv.CodeOf(err))
	case v.StaleReason != "":
		what = "stale-if-error"
	default:
		what = string(v.Tier)
	}
	b.add("read "+level+" "+what, 1)
}

// collect adds the counters of a node that ends.
func (b *branches) collect(g prometheus.Gatherer) {
	families, err := g.Gather()
	if err != nil {
		return
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "kvmesh_") {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetCounter() == nil {
				continue
			}
			name := strings.TrimPrefix(f.GetName(), "kvmesh_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			b.add(name, m.GetCounter().GetValue())
		}
	}
}

// merge adds what another run counted.
func (b *branches) merge(o *branches) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, n := range o.n {
		b.add(k, n)
	}
}

// expected are the branches that a simulation of thirty seeds must come to; each is the sum of the counters that begin
// so.
var expected = map[string][]string{
	"a late fill stored marked":           {"fills_late_total outcome=marked"},
	"a late fill not stored":              {"fills_late_total outcome=dropped"},
	"a joiner refused the result":         {"fill_joins_refused_total"},
	"a reader joined a running fill":      {"fill_joins_total"},
	"P(key) noted":                        {"cache_revisions_noted_total"},
	"an entry evicted":                    {"cache_evictions_total"},
	"a new epoch":                         {"epoch begun"},
	"an epoch adopted":                    {"epochs_adopted_total"},
	"served while revalidating":           {"stale_served_total why=while-revalidating"},
	"stale-if-error":                      {"stale_served_total why=if-error"},
	"a hint was heard before the feed":    {"hints_early_total"},
	"a hint of another epoch was refused": {"hints_total what=refused"},
	"records from the ring":               {"feed_ladder_total rung=ring"},
	"records from the change index":       {"feed_ladder_total rung=index"},
	"namespace floors":                    {"feed_ladder_total rung=namespaces"},
	"a floor for everything":              {"feed_ladder_total rung=all"},
	"an edge fed by a relay":              {"feed_subscriptions_total source=relay"},
	"another relay or voter took over":    {"feed_failovers_total"},
	"records pulled with the feed cut":    {"feed_pulls_total"},
	"a fill from the owner in the region": {"fills_total result=ok tier=region"},
	"a fill from the nearest voter":       {"fills_total result=ok tier=central"},
	"a fill from the leader":              {"fills_total result=ok tier=store"},
	"a fill hedged":                       {"fill_hedges_total"},
	"a strong read answered":              {"read strong store"},
	"a strong read refused":               {"read strong no_leader", "read strong unavailable", "read strong deadline_exceeded"},
	"a bookmark met from memory":          {"read bookmark hit"},
	"a limit that nobody could meet":      {"read bounded stale_beyond_limit"},
	"a transaction carried out":           {"txn carried out"},
	"a transaction refused":               {"txn refused"},
	"a write of unknown outcome":          {"write outcome_unknown"},
	"a write refused without a quorum":    {"write no_quorum", "write no_leader"},
	"a leadership that was not confirmed": {"raft_confirmations_total code=no", "raft_confirmations_total code=not_leader"},
}

// missing lists the expected branches that were never taken.
func (b *branches) missing() (out []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for what := range expected {
		if b.taken(what) == 0 {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out
}

// taken is how often an expected branch was taken. The caller holds mu.
func (b *branches) taken(what string) (n float64) {
	for name, count := range b.n {
		if slices.ContainsFunc(expected[what], func(p string) bool { return strings.HasPrefix(name, p) }) {
			n += count
		}
	}
	return n
}

// print lists all counters that are not zero, and then how often each expected branch was taken.
func (b *branches) print(w io.Writer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(b.n)) {
		if b.n[k] > 0 {
			_, _ = fmt.Fprintf(w, "%10.0f  %s\n", b.n[k], k)
		}
	}
	_, _ = fmt.Fprintln(w)
	for _, what := range slices.Sorted(maps.Keys(expected)) {
		_, _ = fmt.Fprintf(w, "%10.0f  %s\n", b.taken(what), what)
	}
}
