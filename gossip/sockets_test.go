package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"kvmesh/gossip"
)

func realOptions(id string, seeds ...string) gossip.Options {
	return gossip.Options{
		ID: id, Role: "voter", Region: "r-" + id, Bind: "127.0.0.1:0", Seeds: seeds, Profile: gossip.Test,
		Key: bytes.Repeat([]byte{7}, 32), Label: "label",
	}
}

func startReal(t *testing.T, opts gossip.Options) *gossip.Gossip {
	t.Helper()
	g, err := gossip.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	if err := g.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return g
}

// eventually waits for ok on each change of the members, and now and then.
func eventually(t *testing.T, what string, g *gossip.Gossip, ok func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		changed := g.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-time.After(20 * time.Millisecond):
		case <-limit:
			t.Fatalf("%s: never; members %+v, joining %+v", what, g.Members(), g.JoinState())
		}
	}
}

// slowly is a Shaper with one delay for everything.
type slowly struct {
	delay   time.Duration
	wrapped atomic.Int32
}

func (s *slowly) Delay(string) time.Duration { return s.delay }

func (s *slowly) WrapConn(c net.Conn, _ string) net.Conn {
	s.wrapped.Add(1)
	return c
}

func TestRealSockets(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	t.Run("mesh", func(t *testing.T) {
		heard := make(chan string, 10)
		shaper := &slowly{delay: 20 * time.Millisecond}
		first := startReal(t, realOptions("a", "127.0.0.1:1"))
		nodes := []*gossip.Gossip{first}
		for _, id := range []string{"b", "c", "d", "e", "f"} {
			opts := realOptions(id, first.Addr())
			opts.OnHint = func(p []byte) { heard <- id + string(p) }
			if id == "f" {
				opts.Shaper = shaper
			}
			nodes = append(nodes, startReal(t, opts))
		}
		start := time.Now()
		for _, g := range nodes {
			eventually(t, "all know all", g, func() bool { return len(g.Members()) == len(nodes) })
		}
		t.Logf("six nodes after %v", time.Since(start))
		const refused = "seed 127.0.0.1:1 does not answer (connection refused), will keep trying"
		eventually(t, "the seed is refused", first, func() bool { return first.JoinState().Seeds[0].Err == refused })

		first.Hint([]byte(" now"))
		var got []string
		for range nodes[1:] {
			got = append(got, <-heard)
		}
		slices.Sort(got)
		if want := []string{"b now", "c now", "d now", "e now", "f now"}; !slices.Equal(got, want) {
			t.Errorf("heard %q, want %q", got, want)
		}

		last := nodes[5]
		eventually(t, "regions are measured", last, func() bool { return len(last.RegionRTT()) == 5 })
		for region, rtt := range last.RegionRTT() {
			if rtt < shaper.delay {
				t.Errorf("%s is %v away behind a delay of %v", region, rtt, shaper.delay)
			}
		}
		if shaper.wrapped.Load() == 0 {
			t.Error("streams went past the shaper")
		}

		stranger := realOptions("x", first.Addr())
		stranger.Key, stranger.Label = bytes.Repeat([]byte{8}, 32), "other"
		x := startReal(t, stranger)
		eventually(t, "a wrong key is named", x, func() bool {
			return strings.Contains(x.JoinState().Seeds[0].Err, "wrong mesh key")
		})

		if err := last.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a departure is one", first, func() bool {
			m, ok := first.Member("f")
			return ok && m.State == gossip.Left
		})
	})
}

// Whoever connects and says nothing costs a stream, up to a limit, and does not outlive the node.
func TestSilentStreams(t *testing.T) {
	opts := realOptions("a")
	opts.Profile = gossip.WAN // memberlist itself would close them after 10 s
	g := startReal(t, opts)
	const limit = 128
	var open []net.Conn
	for range limit + 1 {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	closed := func(c net.Conn) bool {
		if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err := c.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	if !closed(open[limit]) {
		t.Error("one stream above the limit was kept")
	}
	if err := g.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i, c := range open {
		if !closed(c) {
			t.Fatalf("stream %d outlives the node", i)
		}
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for want, change := range map[string]func(*gossip.Options){
		"TCP port of " + tcp.Addr().String() + " is in use by another process: stop it, or choose another address with --gossip": func(o *gossip.Options) { o.Bind = tcp.Addr().String() },
		"UDP port of " + udp.LocalAddr().String() + " is in use":                                                                 func(o *gossip.Options) { o.Bind = udp.LocalAddr().String() },
		"--advertise":                 func(o *gossip.Options) { o.Bind = "0.0.0.0:0" },
		`seed "nowhere" (--join)`:     func(o *gossip.Options) { o.Seeds = []string{"nowhere"} },
		"key has 5 bytes, want 32":    func(o *gossip.Options) { o.Key = []byte("short") },
		"the limit is 512":            func(o *gossip.Options) { o.Name, o.Version = strings.Repeat("n", 250), strings.Repeat("v", 250) },
		"node id":                     func(o *gossip.Options) { o.ID = "a\nb" },
		"cluster id":                  func(o *gossip.Options) { o.Cluster = "zz" },
		"role and region must be set": func(o *gossip.Options) { o.Region = "" },
		"unknown profile(9)":          func(o *gossip.Options) { o.Profile = 9 },
	} {
		opts := realOptions("a")
		change(&opts)
		g, err := gossip.New(opts)
		if err == nil {
			t.Errorf("want an error with %q", want)
			_ = g.Stop(context.Background())
			continue
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q, want %q in it", err, want)
		}
	}
}

func TestStopWithoutStart(t *testing.T) {
	g, err := gossip.New(realOptions("a"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	if err := g.Start(context.Background()); err == nil {
		t.Error("started after Stop")
	}
	again := realOptions("a")
	again.Bind = g.Addr()
	if g, err = gossip.New(again); err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	if err := g.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}
