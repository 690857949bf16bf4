package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

func fullMeta() meta {
	return meta{
		name: "voter-1", role: "voter", region: "eu-west", version: "0.1.0", http: "192.168.10.20:8580",
		peer: "192.168.10.20:8581", cluster: kv.NewClusterID(), expect: 3,
	}
}

func TestMetaRoundTrip(t *testing.T) {
	for _, m := range []meta{{}, fullMeta()} {
		b, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 200 {
			t.Errorf("usual meta takes %d bytes", len(b))
		}
		got, err := decodeMeta(append(b, "of a later version"...))
		if err != nil || got != m {
			t.Errorf("got %+v, %v, want %+v", got, err, m)
		}
		for i := range b {
			if _, err := decodeMeta(b[:i]); !errors.Is(err, errMeta) {
				t.Errorf("%d of %d bytes: %v", i, len(b), err)
			}
		}
	}
}

func TestMetaLimits(t *testing.T) {
	for _, m := range []meta{
		{name: strings.Repeat("x", 256)},
		{name: strings.Repeat("x", 250), role: strings.Repeat("x", 250)},
		{region: "\x1b[31m"},
		{region: "\xff"},
	} {
		if _, err := m.encode(); err == nil {
			t.Errorf("%.20v was encoded", m)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, err := fullMeta().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(appendHint(appendHint([]byte{hintVersion}, 0, []byte("one")), 3, []byte("two")))
	f.Add([]byte{hintVersion, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := decodeMeta(b); err == nil {
			again, err := m.encode()
			if err != nil {
				t.Fatal(err)
			}
			if m2, err := decodeMeta(again); err != nil || m2 != m {
				t.Fatalf("%+v became %+v, %v", m, m2, err)
			}
		}
		total := 0
		decodeHints(b, func(h hint) { total += len(h.payload) + 2 })
		if total > len(b) {
			t.Fatalf("%d bytes of hints in %d", total, len(b))
		}
	})
}

func TestDecodeHints(t *testing.T) {
	frame := appendHint(appendHint([]byte{hintVersion}, 0, []byte("one")), 3, []byte("two"))
	for name, c := range map[string]struct {
		in   []byte
		ok   bool
		want []string
	}{
		"two":           {frame, true, []string{"0one", "3two"}},
		"empty":         {nil, false, nil},
		"other version": {append([]byte{9}, frame[1:]...), false, nil},
		"truncated":     {frame[:len(frame)-1], false, []string{"0one"}},
		"no payload":    {[]byte{hintVersion, 0, 0}, false, nil},
		"too long":      {appendHint([]byte{hintVersion}, 0, make([]byte, MaxHintBytes+1)), false, nil},
	} {
		var got []string
		ok := decodeHints(c.in, func(h hint) { got = append(got, fmt.Sprintf("%d%s", h.hops, h.payload)) })
		if ok != c.ok || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %q", name, ok, got)
		}
	}
}

func testHints(t *testing.T) *hints {
	t.Helper()
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newHints(m)
}

func TestBroadcastQueue(t *testing.T) {
	h := testHints(t)
	for i := range 3 {
		h.enqueue(hint{payload: fmt.Appendf(nil, "hint-%d", i)}, time.Now())
	}
	size := len(h.queue[0].frame)
	got := h.broadcasts(2, 2*(size+2), 5)
	if len(got) != 2 || !bytes.Contains(got[0], []byte("hint-2")) || !bytes.Contains(got[1], []byte("hint-1")) {
		t.Fatalf("want the two newest, got %q", got)
	}
	sent := make(map[string]int)
	for _, b := range got {
		sent[string(b)]++
	}
	for range 100 {
		for _, b := range h.broadcasts(2, 1000, 5) {
			sent[string(b)]++
		}
	}
	for b, n := range sent {
		if n != spreadMult {
			t.Errorf("%q was sent %d times, want %d in a pool of five", b, n, spreadMult)
		}
	}
	if len(sent) != 3 || len(h.queue) != 0 || h.bytes != 0 {
		t.Errorf("%d sent, %d queued, %d bytes", len(sent), len(h.queue), h.bytes)
	}

	for i := range 5 * maxQueued {
		h.enqueue(hint{payload: fmt.Appendf(nil, "%d", i)}, time.Now())
	}
	if len(h.queue) != maxQueued || len(h.recent) != maxRecent {
		t.Errorf("%d queued, %d recent", len(h.queue), len(h.recent))
	}
	for range maxQueued {
		h.enqueue(hint{payload: make([]byte, MaxHintBytes)}, time.Now())
	}
	if h.bytes > maxQueuedBytes || len(h.recentHints(time.Now())) > maxRecentBytes {
		t.Errorf("%d bytes queued, %d recent", h.bytes, len(h.recentHints(time.Now())))
	}
	if b := h.recentHints(time.Now().Add(recentFor + time.Second)); b != nil {
		t.Errorf("%d bytes of old hints", len(b))
	}
}

func TestSeenIsBounded(t *testing.T) {
	h := testHints(t)
	for i := range 3 * maxSeen {
		if !h.first(fmt.Appendf(nil, "%d", i)) {
			t.Fatalf("%d seen before it came", i)
		}
	}
	if len(h.seen)+len(h.seenBefore) > 2*maxSeen {
		t.Errorf("%d identities kept", len(h.seen)+len(h.seenBefore))
	}
	if h.first(fmt.Appendf(nil, "%d", 3*maxSeen-maxSeen)) {
		t.Error("a recent one is forgotten")
	}
}

func TestRoundTripHysteresis(t *testing.T) {
	r := &rtt{}
	for _, step := range []struct{ sample, want time.Duration }{
		{100, 100}, {119, 100}, {90, 100}, {81, 100}, // noise
		{79, 79},                                   // nearer by more than a fifth
		{300, 79}, {300, 79}, {300, 79}, {300, 79}, // a queue somewhere
		{300, 300}, // no: the way is longer now
	} {
		r.add(step.sample * time.Millisecond)
		if r.published != step.want*time.Millisecond {
			t.Fatalf("after %dms: %v, want %dms", step.sample, r.published, step.want)
		}
	}
	near := &rtt{}
	near.add(100 * time.Microsecond)
	near.add(10 * time.Microsecond)
	if near.published != 100*time.Microsecond {
		t.Errorf("noise on one machine moved the figure to %v", near.published)
	}
}

func TestExplain(t *testing.T) {
	for want, c := range map[string][2]error{
		"does not answer (connection refused)": {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, errors.New("x")},
		"does not answer (timeout)":            {context.DeadlineExceeded, errors.New("x")},
		"does not answer (no route to host)":   {syscall.EHOSTUNREACH, errors.New("x")},
		"answered but closed the connection":   {nil, errors.New("failed to join 1.2.3.4:5: EOF")},
		"belongs to another mesh":              {nil, fmt.Errorf("failed to join 1.2.3.4:5: %v", errForeign)},
		"said nothing":                         {nil, errors.New("read tcp 1.2.3.4:5: i/o timeout")},
	} {
		if _, got := explain(c[0], c[1]); !strings.Contains(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestLibLines(t *testing.T) {
	for in, want := range map[string]string{
		"[ERR] memberlist: Failed to send ping: x\n":      "WARN Failed to send ping: x",
		"[WARN] memberlist: Refuting":                     "INFO Refuting",
		"[DEBUG] memberlist: Stream connection":           "DEBUG Stream connection",
		"[WARN] memberlist: ignoring alive message for x": "DEBUG ignoring alive message for x",
		"no tag at all": "DEBUG no tag at all",
	} {
		level, text := libLine([]byte(in))
		if got := level.String() + " " + text; got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	if level, text := libLine([]byte("[ERR] memberlist: Decrypt packet failed: x")); level != slog.LevelWarn ||
		!strings.Contains(text, "another mesh key") {
		t.Errorf("%v %q", level, text)
	}
}
