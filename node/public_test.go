package node

import (
	"context"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// TestKnownNamespace: the hit path finds what this node knows, by bytes.
func TestKnownNamespace(t *testing.T) {
	id := kv.NamespaceID{1, 2, 3}
	x := indexControl(kv.Control{Namespaces: []kv.Namespace{{ID: id, Title: "default"}, {ID: kv.NamespaceID{4}, Title: "other"}}}, nil)
	control := &controlState{}
	control.cur.Store(x)
	m := memory{&service{control: control}}
	for _, tc := range []struct {
		ref  string
		byID bool
		want kv.NamespaceID
		ok   bool
	}{
		{"default", false, id, true},
		{"other", false, kv.NamespaceID{4}, true},
		{id.String(), false, id, true},
		{id.String(), true, id, true},
		{"default", true, kv.NamespaceID{}, false},
		{"Default", false, kv.NamespaceID{}, false},
		{"", false, kv.NamespaceID{}, false},
		{kv.NamespaceID{5}.String(), false, kv.NamespaceID{}, false},
		{id.String() + "0", true, kv.NamespaceID{}, false},
	} {
		ref := []byte(tc.ref)
		var got kv.NamespaceID
		var ok bool
		n := testing.AllocsPerRun(10, func() { got, ok = m.Namespace(ref, tc.byID) })
		if ok != tc.ok || (ok && got != tc.want) || n != 0 {
			t.Errorf("%q, by id %v: %v, %v, %v allocations; want %v, %v", tc.ref, tc.byID, got, ok, n, tc.want, tc.ok)
		}
	}
}

// byKey answers fills by the key.
type byKey map[string]cache.FillAnswer

func (byKey) Route(uint64, int) []cache.Hop { return []cache.Hop{{Node: "v", Tier: cache.TierCentral}} }

func (b byKey) Ask(_ context.Context, _ cache.Hop, req cache.FillRequest) (cache.FillAnswer, error) {
	ans := b[req.Key]
	ans.Epoch, ans.AsOf, ans.Size = req.Epoch, 12, int64(len(ans.Value))
	return ans, nil
}

// TestHeld: a value that exists, is whole, and has certainly not expired is what Get gives. Everything else is left to Get.
func TestHeld(t *testing.T) {
	h := &handClocks{wall: time.Unix(1_800_000_000, 0)}
	own := h.own()
	id := kv.NamespaceID{1}
	end := h.wall.Unix() + 10
	c := cache.New(cache.Options{
		Bytes: 1 << 20, Clock: own.Now, Logger: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Asker: byKey{
			"plain":  {Revision: 7, Value: []byte("text"), Metadata: []byte(`{"a":1}`)},
			"empty":  {Revision: 8, Value: []byte{}},
			"expiry": {Revision: 9, Value: []byte("for ten seconds"), Expiry: end},
			"absent": {Absent: true},
			"large":  {Revision: 10, Blob: kv.BlobID{1}},
		},
	})
	t.Cleanup(c.Close)
	c.Adopt(kv.NewEpoch(1, kv.Epoch{}), 12)
	clock := newMeshClock(func() time.Duration { return h.mono }, own.Now, h.wall)
	clock.Observe(h.wall.UnixMilli())
	m := memory{&service{cache: c, clock: clock}}
	limit := time.Minute
	check := func(key string, want bool) {
		t.Helper()
		var v api.Value
		if got := m.Held(&v, id, []byte(key), limit); got != want {
			t.Fatalf("%s is held: %v, want %v", key, got, want)
		}
		if !want {
			return
		}
		got, err := m.s.Get(t.Context(), api.GetRequest{Namespace: kv.Namespace{ID: id}, Key: key, CacheTTL: limit})
		if err != nil || !reflect.DeepEqual(*got, v) {
			t.Errorf("%s: Held gives %+v, Get %+v, %v", key, v, got, err)
		}
		if n := testing.AllocsPerRun(10, func() { m.Held(&v, id, []byte(key), limit) }); n != 0 {
			t.Errorf("%s: %v allocations", key, n)
		}
	}
	keys := map[string]bool{"plain": true, "empty": true, "expiry": true, "absent": false, "large": false}
	for key, want := range keys {
		check(key, false)
		if _, err := m.s.Get(t.Context(), api.GetRequest{Namespace: kv.Namespace{ID: id}, Key: key, CacheTTL: limit}); err != nil {
			t.Fatal(err)
		}
		check(key, want)
	}
	// A machine that slept may be past an expiry that its clock has not reached. Then the mesh says that it did not sleep.
	h.wall = h.wall.Add(10 * time.Second)
	check("expiry", false)
	clock.Observe((end - 10) * 1000)
	check("expiry", true)

	h.pass(9999 * time.Millisecond)
	check("expiry", true)
	h.pass(time.Millisecond)
	check("expiry", false)
	check("plain", true)

	h.pass(2 * limit)
	check("plain", false)
}
