package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"kvmesh/config"
	"kvmesh/node/cli/bench"
	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

// Limits of `kvmesh bench`, so that a slip of the finger does not take the machine down.
const (
	maxBenchConnections = 10_000
	maxBenchKeys        = 100_000_000
	maxBenchRate        = 10_000_000
)

func (r *run) benchCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "bench",
		Usage:     "put a load on nodes and show how long the answers take",
		ArgsUsage: "[URL...]",
		Description: "Writes --keys keys named bench-…, then reads and replaces them through all of the URLs (default: --url).\n\n" +
			"   With --rate requests are due at fixed moments, and latencies count from these: a node that stands still for a\n" +
			"   while is seen as its users see it. Without, every connection asks as soon as it has an answer: that finds the\n" +
			"   maximum; latencies are those of a node that is never asked faster than it answers.\n\n" +
			"   kvmesh bench --rate 5000 --mix B http://127.0.0.1:8580 http://127.0.0.1:8680",
		Flags: clientFlags(
			&ucli.Float64Flag{Name: "rate", Usage: "`REQUESTS` a second, all together; 0: as many as there are answers"},
			&ucli.IntFlag{Name: "connections", Value: 64, Usage: "`N` requests under way at most, each on a connection of its own"},
			&ucli.DurationFlag{Name: "duration", Value: 30 * time.Second, Usage: "how long `TIME` to measure"},
			&ucli.DurationFlag{Name: "warmup", Value: 5 * time.Second, Usage: "`TIME` before that, not measured"},
			&ucli.StringFlag{Name: "mix", Value: "B", Usage: "`NAME` of a YCSB workload: A (half of it reads), B (95 % reads) or C (reads only)"},
			&ucli.IntFlag{Name: "keys", Value: 10_000, Usage: "`N` different keys"},
			&ucli.Float64Flag{Name: "zipf", Value: 0.99, Usage: "`SKEW` of the keys' popularity, 0 (all alike) to 0.999"},
			&ucli.StringFlag{Name: "value-size", Value: "288", Usage: "median `BYTES` of a value"},
			&ucli.Float64Flag{Name: "spread", Value: 1.5, Usage: "`SIGMA` of the values' log-normal sizes; 0: all have the same"},
			&ucli.BoolFlag{Name: "no-fill", DisableDefaultText: true, Usage: "the keys are there already, from a run with the same --keys"},
			namespaceFlag(),
		),
		Action: func(c *ucli.Context) error {
			asJSON, err := wantsJSON(c)
			if err != nil {
				return err
			}
			o, err := r.benchOptions(c)
			if err != nil {
				return err
			}
			roots, _, err := r.roots(c)
			if err != nil {
				return err
			}
			if err := r.checkNodes(c, o, roots); err != nil {
				return err
			}
			return r.bench(c.Context, o, roots, !c.Bool("no-fill"), asJSON)
		},
	}
}

func (r *run) benchOptions(c *ucli.Context) (bench.Options, error) {
	o := bench.Options{
		URLs: c.Args().Slice(), Rate: c.Float64("rate"), Workers: c.Int("connections"), WarmUp: c.Duration("warmup"), During: c.Duration("duration"),
		Load: bench.Load{Keys: c.Int("keys"), Zipf: c.Float64("zipf"), Spread: c.Float64("spread"), MaxBytes: kv.MaxValueBytes},
	}
	var err error
	if o.Load.Reads, err = bench.Mix(strings.ToUpper(c.String("mix"))); err != nil {
		return o, usagef("--mix: %v", err)
	}
	size, err := config.ParseSize(c.String("value-size"))
	if err != nil {
		return o, usagef("--value-size: %v", err)
	}
	o.Load.MedianBytes = int(size)
	for _, limit := range []struct {
		name     string
		value    float64
		min, max float64
	}{
		{"rate", o.Rate, 0, maxBenchRate},
		{"connections", float64(o.Workers), 1, maxBenchConnections},
		{"keys", float64(o.Load.Keys), 1, maxBenchKeys},
		{"zipf", o.Load.Zipf, 0, 0.999},
		{"spread", o.Load.Spread, 0, 5},
		{"value-size", float64(size), 0, kv.MaxValueBytes},
	} {
		if !(limit.value >= limit.min && limit.value <= limit.max) { // NaN is neither
			plain := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
			return o, usagef("--%s %s: use %s to %s", limit.name, plain(limit.value), plain(limit.min), plain(limit.max))
		}
	}
	if o.During <= 0 || o.WarmUp < 0 {
		return o, usagef("--duration must be longer than 0s, and --warmup 0s or more")
	}
	if len(o.URLs) == 0 {
		o.URLs = []string{r.fromEnv(c, "url", "URL")}
	}
	for i, u := range o.URLs {
		cl, err := client.New(client.Options{URL: u})
		if err != nil {
			return o, usagef("%v", err)
		}
		o.URLs[i] = cl.URL()
	}
	if o.Path, err = client.KeysPath(c.String("namespace")); err != nil {
		return o, usagef("--namespace: %v", err)
	}
	if path := r.fromEnv(c, "token-file", "TOKEN_FILE"); path != "" {
		if o.Token, err = readToken(path); err != nil {
			return o, usagef("--token-file: %v", err)
		}
	}
	return o, nil
}

// checkNodes asks each node for the namespace, so that what is wrong is said before anything is written.
func (r *run) checkNodes(c *ucli.Context, o bench.Options, roots *x509.CertPool) error {
	for _, u := range o.URLs {
		opts := client.Options{URL: u, Token: o.Token, RootCAs: roots, RetryFor: c.Duration("retry-for")}
		if opts.RetryFor <= 0 {
			opts.RetryFor = -1
		}
		cl, err := client.New(opts)
		if err != nil {
			return err
		}
		_, err = cl.Namespace(c.Context, c.String("namespace"))
		cl.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) bench(ctx context.Context, o bench.Options, roots *x509.CertPool, fill, asJSON bool) error {
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	b, err := bench.New(o)
	if err != nil {
		return err
	}
	if fill {
		stop := r.showCount("filling", int64(o.Load.Keys), b.Stored)
		err := b.Fill(ctx)
		stop()
		if err != nil {
			return fmt.Errorf("fill: %w", err)
		}
	}
	whole := o.WarmUp + o.During
	begun := time.Now()
	stop := r.showCount("asking", whole.Milliseconds(), func() int64 { return time.Since(begun).Milliseconds() })
	res, err := b.Run(ctx)
	stop()
	if err != nil {
		return err
	}
	if asJSON {
		err = r.printJSON(res)
	} else {
		err = r.printBench(o, res)
	}
	if err == nil && len(res.Ops) == 0 {
		return fmt.Errorf("no request has succeeded; one answer: %s", res.Example)
	}
	return err
}

// showCount shows a bar on a terminal, until the function it returns is called, and nothing elsewhere.
func (r *run) showCount(verb string, total int64, now func() int64) (stop func()) {
	if !hasScreen(r.Err) {
		return func() {}
	}
	bars := mpb.New(mpb.WithOutput(r.Err), mpb.WithRefreshRate(barInterval), mpb.WithWidth(64))
	bar := bars.AddBar(total, mpb.PrependDecorators(decor.Name(verb+" ")), mpb.AppendDecorators(decor.Percentage()), mpb.BarRemoveOnComplete())
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(barInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				bar.SetCurrent(min(now(), total-1)) // never full before the end
			case <-quit:
				bar.Abort(true)
				bars.Wait()
				return
			}
		}
	}()
	return func() { close(quit); <-ended }
}

func (r *run) printBench(o bench.Options, res *bench.Result) error {
	t := newTable()
	t.AppendHeader([]any{"", "DONE", "PER SECOND", "BYTES/S", "MEAN MS", "P50", "P90", "P99", "P99.9", "MAX"})
	for _, name := range slices.Sorted(maps.Keys(res.Ops)) {
		op, l := res.Ops[name], res.Ops[name].Latency
		ms := func(v float64) string { return fmt.Sprintf("%.2f", v) }
		t.AppendRow([]any{
			name, op.Done, fmt.Sprintf("%.0f", op.PerSecond), humanBytes(int64(float64(op.Bytes) / res.Seconds)),
			ms(l.Mean), ms(l.P50), ms(l.P90), ms(l.P99), ms(l.P999), ms(l.Max),
		})
	}
	if err := r.printf("%s\n", t.Render()); err != nil {
		return err
	}
	if len(res.Cache) > 0 {
		if err := r.printf("reads came from: %s\n", counts(res.Cache)); err != nil {
			return err
		}
	}
	if len(res.Failed) > 0 {
		if err := r.printf("failed: %s; for example: %s\n", counts(res.Failed), printable(res.Example)); err != nil {
			return err
		}
	}
	if res.Unsent > 0 {
		return r.printf("%d requests were due and never sent: %v a second is more than comes through %d connections\n", res.Unsent, o.Rate, o.Workers)
	}
	return nil
}

// counts lists what was counted, the most frequent first.
func counts(n map[string]int64) string {
	names := slices.SortedFunc(maps.Keys(n), func(a, b string) int {
		if n[a] != n[b] {
			return int(min(1, max(-1, n[b]-n[a])))
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, n[name])
	}
	return strings.Join(names, ", ")
}
