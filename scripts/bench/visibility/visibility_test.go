package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"kvmesh/node/nodetest"
	"kvmesh/node/peer"
)

// TestMain looks for goroutines that were left behind. It is patient: memberlist waits for nobody, and a probe that runs when
// it is shut down ends with its own timeout.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := nodetest.Until(context.Background(), nodetest.Patience, func() error { return goleak.Find() }); err != nil {
			fmt.Fprintln(os.Stderr, "left behind by meshes that were stopped:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// The checker takes what is true, however old, and refuses what is not, by one nanosecond.
func TestHistory(t *testing.T) {
	t0 := time.Now()
	at := func(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }
	const bound = 50 * time.Millisecond
	const one, two, three = "one", "two", "three"
	for name, tc := range map[string]struct {
		a    answer
		want string // of the violation, "" = none
	}{
		"the newest":                         {answer{rev: 2, value: two, start: at(500), bounded: true}, ""},
		"old, but not acknowledged longer":   {answer{rev: 1, value: one, start: at(250), bounded: true, bound: bound}, ""},
		"old, acknowledged a moment longer":  {answer{rev: 1, value: one, start: at(250).Add(1), bounded: true, bound: bound}, "the stated bound is 50ms"},
		"absent, although acknowledged":      {answer{start: at(151), bounded: true, bound: bound}, "revision 1 was acknowledged"},
		"absent before":                      {answer{start: at(149), bounded: true, bound: bound}, ""},
		"no bound promises nothing":          {answer{rev: 1, value: one, start: at(9999)}, ""},
		"another write's value":              {answer{rev: 2, value: one, start: at(250), bounded: true, bound: bound}, `served as "one"`},
		"a value from nowhere":               {answer{rev: 9, value: "nine", start: at(250), bounded: true, bound: bound}, "never written"},
		"one that is not acknowledged yet":   {answer{rev: 4, value: three, start: at(500), bounded: true}, ""},
		"the bound ends between two":         {answer{rev: 1, value: one, start: at(650), bounded: true, bound: 500 * time.Millisecond}, ""},
		"a bound that covers it all":         {answer{start: at(900), bounded: true, bound: time.Hour}, ""},
		"acknowledged in another order":      {answer{rev: 4, value: three, start: at(990), bounded: true}, ""},
		"older than one acknowledged before": {answer{rev: 3, value: "2b", start: at(990), bounded: true}, "revision 4"},
	} {
		h := newHistory()
		for _, v := range []string{one, two, "2b", three} {
			h.sending("k", v)
		}
		h.acknowledged("k", one, 1, at(100))
		h.acknowledged("k", two, 2, at(200))
		h.acknowledged("k", three, 4, at(950))
		h.acknowledged("k", "2b", 3, at(960))
		tc.a.key = "k"
		h.read(tc.a)
		switch err := h.err(); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	var values []time.Duration
	for i := 100; i > 0; i-- {
		values = append(values, time.Duration(i))
	}
	for q, want := range map[float64]time.Duration{0.5: 50, 0.95: 95, 0.99: 99, 1: 100, 0.001: 1} {
		if got := quantile(values, q); got != want {
			t.Errorf("%v of 1 to 100: %v", q, got)
		}
	}
	if quantile(nil, 0.5) != 0 || quantile([]time.Duration{7}, 0.99) != 7 {
		t.Error("of none or one")
	}
}

// pipes returns the two ends of a stream in the weather.
func pipes(w *weather) (*stream, net.Conn) {
	a, b := net.Pipe()
	s := &stream{Conn: a, w: w, gone: make(chan struct{})}
	w.mu.Lock()
	w.open[s] = struct{}{}
	w.mu.Unlock()
	return s, b
}

// A tenth of the streams stalls at any moment, some are reset, and none when the weather is good.
func TestGusts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeather(1)
		defer w.close()
		const streams, seconds = 50, 40
		stalls := func() (part float64, left int) {
			for range streams - len(w.open) {
				pipes(w)
			}
			for range seconds * 20 {
				time.Sleep(50 * time.Millisecond)
				now := time.Now().UnixNano()
				for s := range w.open {
					if s.until.Load() > now {
						part++
					}
				}
			}
			return part / streams / seconds / 20, len(w.open)
		}
		if part, _ := stalls(); part != 0 {
			t.Errorf("%v stall in good weather", part)
		}
		w.set(disturbed)
		if part, _ := stalls(); part < share*0.7 || part > share*1.3 {
			t.Errorf("%.3f stall, want %v", part, share)
		}
		cut := 0
		for s := range w.open {
			if _, err := s.Conn.Write([]byte{1}); errors.Is(err, io.ErrClosedPipe) {
				cut++
			} else {
				_ = s.Conn.Close()
			}
		}
		if cut == 0 {
			t.Error("none was reset")
		}
	})
}

func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeather(1)
		defer w.close()
		s, far := pipes(w)
		got := make(chan time.Duration)
		begin := time.Now()
		go func() {
			_, _ = io.ReadFull(far, make([]byte, 2))
			got <- time.Since(begin)
		}()
		s.stall(300 * time.Millisecond)
		if _, err := s.Write([]byte("ab")); err != nil {
			t.Fatal(err)
		}
		if d := <-got; d != 300*time.Millisecond {
			t.Errorf("written after %v", d)
		}
		s.stall(time.Hour)
		go func() {
			_, err := s.Write([]byte("ab"))
			if err == nil {
				t.Error("written through a closed stream")
			}
			got <- time.Since(begin)
		}()
		time.Sleep(time.Second)
		_ = s.Close()
		if d := <-got; d != 1300*time.Millisecond {
			t.Errorf("a stalled writer goes on %v after Close", d)
		}
		_ = far.Close()
	})
}

// With the feeds cut, a connection that says it is one is reset, at once and when it is new, and others are not.
func TestFeedCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeather(1)
		defer w.close()
		hello := func(alpn string) (*stream, error) {
			s, far := pipes(w)
			go func() { _, _ = io.Copy(io.Discard, far) }()
			_, err := s.Write([]byte("ClientHello " + alpn))
			return s, err
		}
		feed, err := hello(peer.ALPNFeed)
		rpc, err2 := hello(peer.ALPNRPC)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		w.set(feedCut)
		if _, err := feed.Write([]byte("x")); err == nil {
			t.Error("a running feed goes on")
		}
		if _, err := rpc.Write([]byte("x")); err != nil {
			t.Errorf("another connection: %v", err)
		}
		again, err := hello(peer.ALPNFeed)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("a new feed: %v", err)
		}
		w.set(healthy)
		back, err := hello(peer.ALPNFeed)
		if err != nil {
			t.Errorf("a feed in good weather: %v", err)
		}
		for _, s := range []*stream{feed, rpc, again, back} {
			_ = s.Close()
		}
	})
}

// counter is a socket that counts what leaves it.
type counter struct {
	net.PacketConn
	sent []time.Time
}

func (c *counter) WriteTo(b []byte, _ net.Addr) (int, error) {
	c.sent = append(c.sent, time.Now())
	return len(b), nil
}

func TestPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWeather(1)
		c := &counter{}
		p := &packets{c, w}
		send := func(n int) (lost, twice, late int) {
			for range n {
				c.sent = nil
				begin := time.Now()
				if _, err := p.WriteTo([]byte("x"), nil); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				switch {
				case len(c.sent) == 0:
					lost++
				case len(c.sent) == 2:
					twice++
				case c.sent[0].After(begin):
					late++
				}
			}
			return lost, twice, late
		}
		if lost, twice, late := send(100); lost+twice+late != 0 {
			t.Errorf("in good weather %d lost, %d doubled, %d late", lost, twice, late)
		}
		w.set(disturbed)
		lost, twice, late := send(3000)
		if sum := lost + twice + late; sum < 240 || sum > 360 || min(lost, twice, late) < 60 {
			t.Errorf("of 3000 packets %d lost, %d doubled, %d late", lost, twice, late)
		}
		w.close()
	})
}

// TestRun plays a few writes of the rounds on a real mesh. What it prints depends on the machine; that no answer's bound is
// untrue does not.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out bytes.Buffer
	o := options{writes: 10, rate: 20, poll: 20 * time.Millisecond, rounds: allRounds, seed: 1}
	if err := run(ctx, o, &out, io.Discard); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{titles[healthy], titles[disturbed], titles[feedCut], "hot", "cold", "the edge in ap-south", "not true: 0"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in the report", want)
		}
	}
	t.Logf("\n%s", &out)
}

func TestOptions(t *testing.T) {
	good := options{writes: 2, rate: 1, poll: 1, rounds: allRounds}
	if err := good.check(nil); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*options){
		"writes": func(o *options) { o.writes = 1 }, "rate": func(o *options) { o.rate = 0 }, "poll": func(o *options) { o.poll = 0 },
		"rounds": func(o *options) { o.rounds = []string{"stormy"} }, "log": func(o *options) { o.logs = "loud" },
	} {
		o := good
		if change(&o); o.check(nil) == nil {
			t.Errorf("-%s: taken", name)
		}
	}
	if good.check([]string{"x"}) == nil {
		t.Error("an argument: taken")
	}
}
