package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"

	"kvmesh/config"
	"kvmesh/node"
	"kvmesh/node/auth"
	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
)

const (
	// stopTimeout bounds an orderly end; a second signal ends the process at once.
	stopTimeout = 20 * time.Second
	// stopGrace is how much longer a node may take whose orderly end has run out of time.
	stopGrace = 5 * time.Second
	// drainTime is how long a node that was told to stop says so on /readyz and serves all the same. Load balancers look
	// every second or so.
	drainTime = 2 * time.Second
	// devReadyTimeout is when `kvmesh dev` gives up.
	devReadyTimeout = 60 * time.Second
	// devCacheBytes is the cache of each node of `kvmesh dev`.
	devCacheBytes = 256 << 20
)

// Main runs the program with the process's own surroundings.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() { // the first signal ends the work in order, the next one ends the process
		<-ctx.Done()
		stop()
	}()
	return New(Hooks{Serve: serve, Dev: dev}).Run(ctx, args, IO{In: stdin, Out: stdout, Err: stderr})
}

// maxRepairs is how often in a row a node is repaired without having served for repairedFor since: something else is wrong then.
const (
	maxRepairs  = 3
	repairedFor = time.Minute
)

// serve runs one node until ctx ends, and repairs its files when they are found damaged.
func serve(ctx context.Context, c config.Config, stdio IO) error {
	opts := node.Options{
		Role: string(c.Node.Role), Region: c.Node.Region, Name: c.Node.Name, DataDir: c.Node.DataDir,
		HTTP: c.Listen.HTTP, Peer: c.Listen.Peer, Gossip: c.Listen.Gossip, Admin: c.Listen.Admin,
		HTTPCert: c.Listen.HTTPCert, HTTPKey: c.Listen.HTTPKey,
		AdvertiseHost: c.Listen.Advertise, Join: c.Mesh.Join, BootstrapExpect: c.Mesh.BootstrapExpect,
		CacheBytes: int64(c.Cache.Size), WAN: c.Mesh.Profile == config.ProfileWAN, Version: Version(), StrictLimits: c.API.StrictLimits,
		Logger: newLogger(stdio.Err, c.Log.Level, c.Log.Format), Drain: drainTime,
	}
	limitMemory(opts.Logger, os.LookupEnv, c, config.ThisMachine().Memory, debug.SetMemoryLimit)
	var warning string
	var err error
	if opts.MeshKey, warning, err = certs.ReadMeshKeyFile(c.Mesh.KeyFile); err != nil {
		return err
	}
	if warning != "" {
		opts.Logger.Warn(warning)
	}
	if c.API.TokenFile != "" {
		if opts.Token, err = auth.LoadToken(c.API.TokenFile); err != nil {
			return err
		}
	}
	for repairs := 0; ; repairs++ {
		began := time.Now()
		err := serveOnce(ctx, opts)
		if time.Since(began) >= repairedFor {
			repairs = 0
		}
		if !node.Damaged(err) || ctx.Err() != nil || repairs == maxRepairs {
			return err
		}
		opts.Logger.Error("files of this node are damaged; what is damaged is copied from another voter", "error", err)
		if err := node.Repair(ctx, opts); err != nil {
			if ctx.Err() != nil {
				return nil // it was told to stop; the next start goes on
			}
			return err
		}
		opts.Logger.Info("the damaged files are repaired; the node starts again")
	}
}

// serveOnce runs the node until ctx ends, or it cannot go on.
func serveOnce(ctx context.Context, opts node.Options) error {
	failed := make(chan error, 1)
	opts.Fatal = func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	n, err := node.New(opts)
	if err != nil {
		return err
	}
	err = n.Start()
	if err == nil {
		select {
		case <-ctx.Done():
			opts.Logger.Info("stopping")
		case err = <-failed:
			if node.Damaged(err) {
				return halt(ctx, n, err)
			}
			// A node that cannot go on must not go on for as long as an orderly stop takes: its log may have lost what it was
			// told to keep, or its disk may hang. The end of the process closes everything.
			n.Abort()
			return err
		}
	}
	return errors.Join(err, stop(ctx, n.Stop, failed))
}

// stop has a node end in order, or says why it could not be: then its process has to end, which closes everything.
func stop(ctx context.Context, orderly func(context.Context) error, failed <-chan error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- orderly(ctx) }()
	select {
	case err := <-stopped:
		return err
	case err := <-failed:
		return fmt.Errorf("while it stopped: %w", err)
	case <-ctx.Done():
	}
	select {
	case err := <-stopped:
		return err
	case <-time.After(stopGrace): // files are closed without a deadline, and their disk may hang
		return fmt.Errorf("it has not stopped in %v; its disk may hang", stopTimeout+stopGrace)
	}
}

// haltTimeout bounds the end of a node that is to be repaired.
const haltTimeout = 10 * time.Second

// halt ends a node whose files are damaged, and returns why. If it does not end, the process has to, and the error is no
// longer one that says Damaged.
func halt(ctx context.Context, n *node.Node, damage error) error {
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), haltTimeout)
	defer cancel()
	if err := n.Halt(stop); err != nil {
		return fmt.Errorf("%v (the next start repairs it; this process has to end: %v)", damage, err)
	}
	return damage
}

// dev runs a whole mesh until ctx ends.
func dev(ctx context.Context, o DevOptions, stdio IO) (err error) {
	dir := o.DataDir
	if dir == "" {
		if dir, err = devmesh.TempDir(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	key, err := devKey(dir)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	began := time.Now()
	level := new(slog.LevelVar)
	level.Set(o.LogLevel)
	mesh, err := devmesh.Start(devmesh.Shape{
		Regions: o.Regions, Voters: o.Voters, EdgesPerRegion: o.EdgesPerRegion, FirstPort: o.HTTPPort, PortStep: DevPortStep,
		DataDir: dir, WAN: o.WAN, StrictLimits: o.StrictLimits, CacheBytes: devCacheBytes, MeshKey: key, Version: Version(),
		Logger: newLogger(stdio.Err, level, config.LogText),
		Fatal: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if o.LogLevel == slog.LevelWarn { // that the last voters find nobody to hand over to is no news to who ends them all
			level.Set(slog.LevelError)
		}
		err = errors.Join(err, mesh.Stop(stop))
	}()
	ready, cancel := context.WithTimeout(ctx, devReadyTimeout)
	defer cancel()
	if err := mesh.Ready(ready); err != nil {
		if ctx.Err() != nil {
			return nil // interrupted
		}
		return err
	}
	if err := announce(stdio.Out, o, mesh, time.Since(began)); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// devKey is the mesh key that a kept data directory was made with, or a new one.
func devKey(dir string) (certs.MeshKey, error) {
	path := dir + "/mesh.key"
	key, _, err := certs.ReadMeshKeyFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		return key, err
	}
	key = certs.NewMeshKey()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, err
	}
	return key, os.WriteFile(path, []byte(key.Encode()+"\n"), 0o600)
}

// devNode is one node in the line that `kvmesh dev --json` prints.
type devNode struct {
	ID     string `json:"id"`
	Role   string `json:"role"`
	Region string `json:"region"`
	HTTP   string `json:"http"`
	Admin  string `json:"admin"`
	PID    int    `json:"pid"`
}

func announce(w io.Writer, o DevOptions, m *devmesh.Mesh, took time.Duration) error {
	nodes := make([]devNode, len(m.Nodes))
	for i, n := range m.Nodes {
		nodes[i] = devNode{
			ID: n.ID(), Role: m.Members[i].Role, Region: m.Members[i].Region, HTTP: n.HTTPURL(), Admin: n.AdminURL(), PID: os.Getpid(),
		}
	}
	if o.JSON {
		return json.NewEncoder(w).Encode(struct {
			Ready bool      `json:"ready"`
			Nodes []devNode `json:"nodes"`
		}{true, nodes})
	}
	t := table.NewWriter()
	t.SetStyle(table.StyleLight)
	t.AppendHeader(table.Row{"region", "role", "http", "admin"})
	for _, n := range nodes {
		t.AppendRow(table.Row{n.Region, n.Role, n.HTTP, n.Admin})
	}
	where := "  (--data-dir keeps the data; it goes with this process otherwise)"
	if o.DataDir != "" {
		where = ""
	}
	_, err := fmt.Fprintf(w, "%s\nready in %.1f s; Ctrl-C ends it%s\n\n  curl -X PUT --data hello %s/v1/kv/default/greeting\n  curl -i %s/v1/kv/default/greeting\n",
		t.Render(), took.Seconds(), where, nodes[0].HTTP, nodes[min(1, len(nodes)-1)].HTTP)
	return err
}

func newLogger(w io.Writer, level slog.Leveler, format config.LogFormat) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == config.LogJSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
