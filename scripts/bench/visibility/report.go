package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

const (
	// A hot key's change is to be visible everywhere, in 99 of 100 cases, within the slowest one-way delay, one fill from
	// the nearest voter, and aimSlack.
	aimSlack = 50 * time.Millisecond
	// aimBound is the 99th percentile of stated bounds that is aimed at.
	aimBound = time.Second
)

var titles = map[string]string{
	healthy:   "healthy",
	disturbed: "10 % of streams and packets disturbed",
	feedCut:   "all feeds cut: hints and pulls only",
}

// quantile is the smallest value that a share q of all values does not exceed; 0 of none. It sorts values.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	rank := int(q*float64(len(values))+0.999999) - 1
	return values[min(max(rank, 0), len(values)-1)]
}

// four are the quantiles that are shown, in milliseconds.
func four(values []time.Duration) []any {
	var out []any
	for _, q := range []float64{0.50, 0.95, 0.99, 1} {
		out = append(out, ms(quantile(values, q)))
	}
	return out
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d)/float64(time.Millisecond)) }

// report prints one round's figures.
func (b *bench) report(r *round) {
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.Style().Format.Header = text.FormatDefault
	t.SetTitle("%s: %d writes, the leader in %s", titles[r.name], r.writes, r.leader)
	t.AppendHeader(table.Row{
		"keys", "visible at", "writes", "from commit: p50", "p95", "p99", "max ms", "from acknowledgement: p50", "p95", "p99", "max ms",
	})
	var numbers []table.ColumnConfig
	for i := 3; i <= 11; i++ {
		numbers = append(numbers, table.ColumnConfig{Number: i, Align: text.AlignRight})
	}
	t.SetColumnConfigs(numbers)
	for _, kind := range []struct {
		name   string
		series *series
	}{{"hot", &r.hotSeries}, {"cold", &r.coldSeries}} {
		n := len(b.clients.edges)
		for k := range n + 1 {
			i := (k + n) % (n + 1) // all of them first
			at := "every edge"
			if i < n {
				at = "the edge in " + b.clients.edges[i].region
			}
			row := table.Row{kind.name, at, len(kind.series.commit[i])}
			row = append(row, four(kind.series.commit[i])...)
			t.AppendRow(append(row, four(kind.series.acked[i])...))
		}
		t.AppendSeparator()
	}
	b.printf("%s\n", t.Render())

	p99 := quantile(r.hotSeries.commit[len(b.clients.edges)], 0.99)
	aim := b.mesh.slowest + b.fill + aimSlack
	b.printf("hot, every edge, p99 from commit: %s ms; aim %s ms = slowest one-way delay %s + one fill from the nearest voter %.1f + %s: %s\n",
		ms(p99), ms(aim), ms(b.mesh.slowest), float64(b.fill)/float64(time.Millisecond), ms(aimSlack), verdict(p99 <= aim))
	q := four(r.bounds)
	b.printf("stated bounds of %d answers: p50 %v, p95 %v, p99 %v, max %v ms; aim p99 %s ms: %s\n",
		len(r.bounds), q[0], q[1], q[2], q[3], ms(aimBound), verdict(quantile(r.bounds, 0.99) <= aimBound))
	b.printf("answers by Kv-Cache:")
	for _, tier := range slices.Sorted(maps.Keys(r.tiers)) {
		b.printf("  %s %d", tier, r.tiers[tier])
	}
	b.printf("; without a bound %d; unanswered reads %d\n", r.unbounded, r.unanswered)
	if r.failed > 0 {
		b.printf("not acknowledged: %d writes, the last one: %v\n", r.failed, r.reason)
	}
	if unseen := r.hotSeries.unseen + r.coldSeries.unseen; unseen > 0 {
		b.printf("acknowledged and not visible everywhere within %v: %d writes\n", seenTimeout, unseen)
	}
	b.history.mu.Lock()
	b.printf("bounds held against what was acknowledged, so far: %d, not true: %d\n\n", b.history.checked, b.history.violated)
	b.history.mu.Unlock()
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func (b *bench) printf(format string, args ...any) {
	_, _ = fmt.Fprintf(b.out, format, args...) // whoever closed the output does not want to know
}
