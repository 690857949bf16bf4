package cli

import (
	"log/slog"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/config"
)

// DevOptions is the shape of the mesh that `kvmesh dev` runs in one process.
type DevOptions struct {
	// Voters in all, spread over the regions in turn.
	Voters int
	// Regions, each named once.
	Regions        []string
	EdgesPerRegion int
	// HTTPPort of the first node. Node i, edges first and then voters, listens DevPortStep × i higher; its peer, gossip
	// and admin ports are the three after its HTTP port.
	HTTPPort int
	// DataDir keeps the data; empty: it is in a temporary directory and goes with the process.
	DataDir string
	// WAN puts the delays between distant regions into the transports.
	WAN bool
	// StrictLimits takes one write a second to each key on the two Cloudflare surfaces.
	StrictLimits bool
	// JSON prints one line of JSON, once all is ready, and no table.
	JSON     bool
	LogLevel slog.Level
}

// DevPortStep is the distance between the HTTP ports of two nodes of `kvmesh dev`.
const DevPortStep = 100

// Limits of `kvmesh dev`: one process and the ports of one machine.
const (
	maxDevVoters = 7
	maxDevEdges  = 20 // a region
)

// Nodes in all.
func (o DevOptions) Nodes() int { return o.Voters + len(o.Regions)*o.EdgesPerRegion }

func (r *run) devCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "dev",
		Usage: "run a whole mesh in this process, to try things out",
		Description: "Starts voters and edges in several regions on loopback ports and prints their URLs. Ctrl-C ends it " +
			"and leaves nothing behind.",
		Flags: []ucli.Flag{
			&ucli.IntFlag{Name: "voters", Value: 3, Usage: "`N` voters in all, spread over the regions"},
			&ucli.StringFlag{Name: "regions", Value: "us-east,eu-west,ap-south", Usage: "`LIST` of regions, with commas between them"},
			&ucli.IntFlag{Name: "edges-per-region", Value: 1, Usage: "`N` edges in each region"},
			&ucli.IntFlag{Name: "http-port", Value: 8580, Usage: "HTTP `PORT` of the first node; every further one is 100 higher"},
			&ucli.StringFlag{Name: "data-dir", Usage: "`DIR` that keeps the data (default: a temporary directory)"},
			&ucli.BoolFlag{Name: "wan", Usage: "delay everything between regions as if they were far apart", DisableDefaultText: true},
			&ucli.BoolFlag{Name: "strict-limits", Usage: "take one write a second to each key on the two Cloudflare surfaces, as Workers KV does", DisableDefaultText: true},
			&ucli.BoolFlag{Name: "json", Usage: "print one line of JSON once all is ready", DisableDefaultText: true},
			&ucli.StringFlag{Name: "log-level", Value: "warn", Usage: "least `LEVEL` that is logged: debug, info, warn or error"},
		},
		Action: func(c *ucli.Context) error {
			if err := exactly(c, 0, "no arguments"); err != nil {
				return err
			}
			o := DevOptions{
				Voters: c.Int("voters"), EdgesPerRegion: c.Int("edges-per-region"), HTTPPort: c.Int("http-port"),
				DataDir: c.String("data-dir"), WAN: c.Bool("wan"), StrictLimits: c.Bool("strict-limits"), JSON: c.Bool("json"),
			}
			for region := range strings.SplitSeq(c.String("regions"), ",") {
				o.Regions = append(o.Regions, strings.TrimSpace(region))
			}
			var err error
			if o.LogLevel, err = config.ParseLevel(c.String("log-level")); err != nil {
				return usagef("--log-level: %v", err)
			}
			if err := o.check(); err != nil {
				return err
			}
			return r.hooks.Dev(c.Context, o, r.IO)
		},
	}
}

// check reports what the flags' types let through.
func (o DevOptions) check() error {
	if o.Voters < 1 || o.Voters > maxDevVoters {
		return usagef("--voters is %d; use 1 to %d", o.Voters, maxDevVoters)
	}
	if o.EdgesPerRegion < 0 || o.EdgesPerRegion > maxDevEdges {
		return usagef("--edges-per-region is %d; use 0 to %d", o.EdgesPerRegion, maxDevEdges)
	}
	seen := map[string]bool{}
	for _, region := range o.Regions {
		if err := config.CheckRegion(region); err != nil {
			return usagef("--regions: %v", err)
		}
		if seen[region] {
			return usagef("--regions names %q twice; name each region once", region)
		}
		seen[region] = true
	}
	if last := o.HTTPPort + DevPortStep*(o.Nodes()-1) + 3; o.HTTPPort < 1 || last > 65535 {
		return usagef("--http-port is %d: the %d nodes need the ports from it to %d, which must lie between 1 and 65535; "+
			"use a lower port or fewer nodes", o.HTTPPort, o.Nodes(), last)
	}
	return nil
}
