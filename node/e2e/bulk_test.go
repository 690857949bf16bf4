package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// bulkItem is the outcome of one item of a bulk call.
type bulkItem struct {
	Key      string
	Status   int
	Revision uint64
	ETag     string
	Value    *string
	Base64   []byte `json:"value_base64"`
	Metadata json.RawMessage
	Cache    string
	Error    nodetest.Error
}

// bytes is the value of a read.
func (b bulkItem) bytes() []byte {
	if b.Value != nil {
		return []byte(*b.Value)
	}
	return b.Base64
}

type bulkAnswer struct {
	Error            nodetest.Error
	Put, Delete, Get []bulkItem
	Failed           int
	Bookmark         string
}

// bulkPut is one put of a bulk call.
type bulkPut struct {
	Key      string `json:"key"`
	Value    string `json:"value,omitempty"`
	Base64   []byte `json:"value_base64,omitzero"`
	Metadata any    `json:"metadata,omitempty"`
	TTL      int    `json:"expiration_ttl,omitempty"`
	IfMatch  string `json:"if_match,omitempty"`
}

// tryBulk sends one bulk call and reads its answer, which has an outcome for every item.
func tryBulk(ctx context.Context, c *nodetest.Client, target string, doc object, headers ...string) (out bulkAnswer, err error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return out, err
	}
	a, err := c.Do(ctx, http.MethodPost, target, body, headers...)
	if err == nil && a.Status != 200 {
		err = fmt.Errorf("%s: %v", c.Name, a)
	}
	if err == nil {
		err = json.Unmarshal(a.Body, &out)
	}
	var sent struct{ Put, Delete, Get []any }
	if err == nil {
		err = json.Unmarshal(body, &sent)
	}
	if err == nil && (len(out.Put) != len(sent.Put) || len(out.Delete) != len(sent.Delete) || len(out.Get) != len(sent.Get)) {
		err = fmt.Errorf("%s: not every item is named: %v", c.Name, a)
	}
	return out, err
}

// bulk is tryBulk for the test's own goroutine.
func bulk(t testing.TB, c *nodetest.Client, target string, doc object, headers ...string) bulkAnswer {
	t.Helper()
	out, err := tryBulk(t.Context(), c, target, doc, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// testBulk: what one node takes in one call is there for all, whatever its size, and each item has an outcome of its own.
func testBulk(t *testing.T, w *world) {
	ns := strings.TrimSuffix(w.namespace(t, "bulk"), "/")
	const texts = 50
	sizes := []int{0, 1, 1023, 1025, kv.MaxInlineValueBytes, kv.MaxInlineValueBytes + 1, kv.MaxCachedValueBytes + 1}
	for i, c := range w.nodes {
		values := map[string][]byte{}
		var puts []bulkPut
		for j := range texts {
			p := bulkPut{Key: fmt.Sprintf("%d/text %d", i, j), Value: strings.Repeat("ü\n", j) + c.Name, Metadata: map[string]int{"j": j}}
			values[p.Key] = []byte(p.Value)
			puts = append(puts, p)
		}
		for _, size := range sizes {
			p := bulkPut{Key: fmt.Sprintf("%d/size %d", i, size), Base64: randomBytes(size)}
			values[p.Key] = p.Base64
			puts = append(puts, p)
		}
		puts = append(puts, bulkPut{Key: strings.Repeat("k", kv.MaxKeyBytes+1), Value: "v"})
		got := bulk(t, c, ns, object{"put": puts})
		if len(got.Put) != len(puts) || got.Failed != 1 || got.Bookmark == "" {
			t.Fatalf("%s: %d of %d named, %d failed, bookmark %q", c.Name, len(got.Put), len(puts), got.Failed, got.Bookmark)
		}
		if bad := got.Put[len(puts)-1]; bad.Status != 400 || bad.Error.Code != "key_too_long" {
			t.Errorf("%s: the bad one: %+v", c.Name, bad)
		}
		var keys []string
		for _, p := range got.Put[:len(puts)-1] {
			if p.Status != 200 || p.Revision == 0 || p.ETag == "" {
				t.Errorf("%s: %+v", c.Name, p)
			}
			keys = append(keys, p.Key)
		}
		for _, o := range w.nodes { // with the bookmark, at once
			read := bulk(t, o, ns+aDay, object{"get": keys}, "Kv-Bookmark", got.Bookmark)
			for k, g := range read.Get {
				want := got.Put[k]
				if g.Key != want.Key || g.Status != 200 || g.Revision != want.Revision || !bytes.Equal(g.bytes(), values[g.Key]) {
					t.Errorf("%s: %q at %s: status %d, revision %d, %d bytes; want revision %d, %d bytes",
						o.Name, g.Key, c.Name, g.Status, g.Revision, len(g.bytes()), want.Revision, len(values[g.Key]))
				}
				if o == c && k < texts && g.Cache != "hit" {
					t.Errorf("%s: its own write %q is not at hand: %s", c.Name, g.Key, g.Cache)
				}
			}
		}
		gone := bulk(t, c, ns, object{"delete": append(keys, "never"), "get": []string{keys[0]}})
		if gone.Failed != 1 || gone.Get[0].Status != 404 || gone.Delete[len(keys)].Revision != 0 {
			t.Errorf("%s: after deleting: %d failed, %+v", c.Name, gone.Failed, gone.Get)
		}
		for _, o := range w.nodes {
			read := bulk(t, o, ns+"?consistency=strong", object{"get": keys[:20]})
			if read.Failed != 20 {
				t.Errorf("%s: %d of 20 deleted keys are gone", o.Name, read.Failed)
			}
		}
	}
}

// testBulkOrder: one key written many times in one call, in many chunks, ends as the last one, and at every node.
func testBulkOrder(t *testing.T, w *world) {
	ns := strings.TrimSuffix(w.namespace(t, "bulk-order"), "/")
	var wg sync.WaitGroup
	for i, c := range w.nodes {
		wg.Go(func() {
			var puts []bulkPut
			key := fmt.Sprint("key", i)
			for j := range 60 {
				puts = append(puts, bulkPut{Key: key, Value: fmt.Sprintf("%d.%d %s", i, j, strings.Repeat("x", 20_000))},
					bulkPut{Key: fmt.Sprint(key, ".", j), Value: strings.Repeat("y", 20_000)})
			}
			got, err := tryBulk(t.Context(), c, ns, object{"put": puts})
			if err != nil || got.Failed != 0 {
				t.Errorf("%s: %d failed: %v", c.Name, got.Failed, err)
				return
			}
			for j := 2; j < len(puts); j += 2 {
				if got.Put[j].Revision <= got.Put[j-2].Revision {
					t.Errorf("%s: write %d has revision %d, the one before it %d", c.Name, j, got.Put[j].Revision, got.Put[j-2].Revision)
				}
			}
			last := puts[len(puts)-2].Value
			if err := c.Sees(t.Context(), ns+"/"+key+aDay, []byte(last)); err != nil {
				t.Errorf("at the node that wrote: %v", err)
			}
			stale, err := tryBulk(t.Context(), c, ns, object{"put": []bulkPut{{Key: key, Value: "no", IfMatch: got.Put[0].ETag}}})
			if err != nil || stale.Put[0].Status != 412 || stale.Put[0].Revision != got.Put[len(puts)-2].Revision {
				t.Errorf("%s: a condition that does not hold: %+v %v", c.Name, stale.Put, err)
			}
		})
	}
	wg.Wait()
	w.everywhere(t, "the last writes", func(ctx context.Context, c *nodetest.Client) error {
		for i := range w.nodes {
			want := fmt.Sprintf("%d.59 %s", i, strings.Repeat("x", 20_000))
			if err := c.Sees(ctx, fmt.Sprint(ns, "/key", i, aDay), []byte(want)); err != nil {
				return err
			}
		}
		return nil
	})
}

// testBulkLimits: ten thousand items in one call, and one more; a value of 25 MiB among small ones, and one byte more.
func testBulkLimits(t *testing.T, w *world) {
	ns := strings.TrimSuffix(w.namespace(t, "bulk-limits"), "/")
	c := w.nodes[0]
	puts := make([]bulkPut, 10_001)
	for i := range puts {
		puts[i] = bulkPut{Key: fmt.Sprint("k", i), Value: "v"}
	}
	// On a machine that is busy with the race detector some of it may take longer than a write has time for.
	nodetest.Eventually(t, 3*nodetest.Patience, "10000 items", func() error {
		got := bulk(t, c, ns, object{"put": puts[:10_000]})
		i := slices.IndexFunc(got.Put, func(p bulkItem) bool { return p.Status != http.StatusOK })
		if i < 0 && got.Failed == 0 && len(got.Put) == 10_000 {
			return nil
		}
		err := fmt.Errorf("%d named, %d failed, the first one: %+v", len(got.Put), got.Failed, got.Put[max(i, 0)])
		if i < 0 || got.Put[i].Status != http.StatusServiceUnavailable {
			t.Fatal(err)
		}
		return err
	})
	doc, err := json.Marshal(object{"put": puts})
	if err != nil {
		t.Fatal(err)
	}
	a := c.Must(t, 413, http.MethodPost, ns, doc)
	if e := a.Err(); e.Code != "request_too_large" || !strings.Contains(e.Message, "10000") {
		t.Errorf("one item more: %v", a)
	}
	large := strings.Repeat("0123456789abcdef", kv.MaxValueBytes/16)
	got := bulk(t, w.nodes[1], ns, object{"put": []bulkPut{
		{Key: "before", Value: "b"}, {Key: "max", Value: large}, {Key: "more", Value: large + "x"}, {Key: "after", Value: "a"},
	}})
	if got.Failed != 1 || got.Put[2].Status != 413 || got.Put[2].Error.Code != "value_too_large" || !strings.Contains(got.Put[2].Error.Message, "26214400") {
		t.Errorf("a value that is too large among good ones: %d failed, %+v", got.Failed, got.Put[2])
	}
	read := bulk(t, w.nodes[2], ns, object{"get": []string{"before", "max", "more", "after"}}, "Kv-Bookmark", got.Bookmark)
	if string(read.Get[0].bytes()) != "b" || string(read.Get[1].bytes()) != large || read.Get[2].Status != 404 || string(read.Get[3].bytes()) != "a" {
		t.Errorf("read elsewhere: %d failed", read.Failed)
	}
}
