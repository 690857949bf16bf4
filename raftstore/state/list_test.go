package state

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// listModel answers a query with everything that matches it at once: names in byte order, groups marked.
func listModel(keys map[string]int64, q ListQuery) (items, groups []string) {
	seen := map[string]bool{}
	for k, expiry := range keys {
		if !strings.HasPrefix(k, q.Prefix) || (expiry != 0 && expiry <= q.Now) {
			continue
		}
		if q.Delimiter != "" {
			if head, _, ok := strings.Cut(k[len(q.Prefix):], q.Delimiter); ok {
				if g := q.Prefix + head + q.Delimiter; !seen[g] && g > q.After {
					seen[g] = true
					groups = append(groups, g)
				}
				continue
			}
		}
		if k > q.After {
			items = append(items, k)
		}
	}
	sort.Strings(items)
	sort.Strings(groups)
	return items, groups
}

func names(items []ListItem) (out []string) {
	for _, it := range items {
		out = append(out, it.Key)
	}
	return out
}

// pages reads a whole listing page by page.
func pages(t *testing.T, f *fixture, q ListQuery) (items []ListItem, groups []string) {
	t.Helper()
	for n := 0; ; n++ {
		res, err := f.List(q)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Items)+len(res.Prefixes) > q.Limit && q.Limit > 0 {
			t.Fatalf("%+v gives %d keys and %d groups", q, len(res.Items), len(res.Prefixes))
		}
		items, groups = append(items, res.Items...), append(groups, res.Prefixes...)
		if res.Complete != (res.Next == "") {
			t.Fatalf("%+v: complete %v, next %q", q, res.Complete, res.Next)
		}
		if res.Complete {
			return items, groups
		}
		if res.Next <= q.After || n > 10_000 {
			t.Fatalf("%+v: no progress, next %q", q, res.Next)
		}
		q.After = res.Next
	}
}

func TestListAgainstModel(t *testing.T) {
	parts := []string{"a", "b", "/", "//", "ü", "\xff", "\x00", "🙂", "ab", "."}
	rng := rand.New(rand.NewPCG(3, 4))
	f := newState(t)
	f.at(0, create(ns2, "two"), in(ns2, put("a/other", "1")))
	keys := map[string]int64{"a/b": 0, "a//b": 0, "a/": 0, "a": 50, "/": 0, "b/": 50, "c/": 50, "c/x": 0, "d/": 50, "\xff\xff": 0}
	for len(keys) < 250 {
		var k string
		for range 1 + rng.IntN(5) {
			k += parts[rng.IntN(len(parts))]
		}
		keys[k] = []int64{0, 0, 50, 200}[rng.IntN(4)]
	}
	for k, expiry := range keys {
		f.at(1, putUntil(k, "v"+k, expiry))
	}
	for i := range 600 {
		q := ListQuery{Namespace: ns1, Now: []int64{0, 50, 300}[i%3], Limit: 1 + rng.IntN(9)}
		if rng.IntN(2) == 0 {
			q.Prefix = strings.Join([]string{parts[rng.IntN(len(parts))], parts[rng.IntN(len(parts))]}[:1+rng.IntN(2)], "")
		}
		if rng.IntN(3) > 0 {
			q.Delimiter = []string{"/", "//", "a", "ü", "\xff", "/a"}[rng.IntN(6)]
		}
		wantItems, wantGroups := listModel(keys, q)
		items, groups := pages(t, f, q)
		if !slices.Equal(names(items), wantItems) || !slices.Equal(groups, wantGroups) {
			t.Fatalf("%+v\ngot  %q %q\nwant %q %q", q, names(items), groups, wantItems, wantGroups)
		}
		if q.Delimiter == "" {
			for q.After = range keys { // any key will do as After, there or not, in the prefix or not
				break
			}
			wantItems, _ = listModel(keys, q)
			if items, _ = pages(t, f, q); !slices.Equal(names(items), wantItems) {
				t.Fatalf("%+v\ngot  %q\nwant %q", q, names(items), wantItems)
			}
		}
	}
}

// TestListPageEnds: a full page knows whether anything living follows.
func TestListPageEnds(t *testing.T) {
	f := newState(t)
	f.at(1, put("a", "1"), put("b", "1"), putUntil("c", "1", 5), putUntil("g/1", "1", 5), put("g/2", "1"))
	for _, c := range []struct {
		q        ListQuery
		complete bool
		next     string
	}{
		{ListQuery{Limit: 2, Now: 10}, false, "b"},
		{ListQuery{Limit: 2, Now: 10, Prefix: "b"}, true, ""},
		{ListQuery{Limit: 1, Now: 10, After: "b", Delimiter: "/"}, true, ""},
		{ListQuery{Limit: 1, Now: 10, After: "g/", Delimiter: "/"}, true, ""},
		{ListQuery{Limit: 1, Now: 0, After: "b", Delimiter: "/"}, false, "c"},
	} {
		c.q.Namespace = ns1
		res, err := f.List(c.q)
		if err != nil || res.Complete != c.complete || res.Next != c.next || res.Applied != f.Applied() {
			t.Errorf("%+v: %+v, %v", c.q, res, err)
		}
	}
	if _, err := f.List(ListQuery{Namespace: ns2}); kv.CodeOf(err) != kv.CodeNamespaceNotFound {
		t.Errorf("unknown namespace: %v", err)
	}
}

func TestListValues(t *testing.T) {
	f := newState(t)
	small := put("a", "small")
	small.Metadata = []byte("meta")
	f.at(1, small, putBlob("b", 5), put("c", strings.Repeat("c", 2000)))
	items, _ := pages(t, f, ListQuery{Namespace: ns1, Values: true})
	for i, want := range []kv.Item{f.get(ns1, "a"), f.get(ns1, "b"), f.get(ns1, "c")} {
		if !reflect.DeepEqual(items[i].Item, want) {
			t.Errorf("item %d: %+v", i, items[i])
		}
	}
	items, _ = pages(t, f, ListQuery{Namespace: ns1})
	for _, it := range items {
		if it.Item.Value != nil || it.Item.Size == 0 {
			t.Errorf("asked for no values: %+v", it)
		}
	}
	// Pages of values end near maxPageBytes.
	value := strings.Repeat("x", kv.MaxInlineValueBytes)
	for i := range 3 * maxPageBytes / len(value) {
		f.at(1, put(fmt.Sprintf("big%03d", i), value))
	}
	res, err := f.List(ListQuery{Namespace: ns1, Prefix: "big", Values: true})
	if n := maxPageBytes / len(value); err != nil || len(res.Items) != n || res.Complete || res.Next != fmt.Sprintf("big%03d", n-1) {
		t.Errorf("%d items, next %q, %v", len(res.Items), res.Next, err)
	}
	if items, _ := pages(t, f, ListQuery{Namespace: ns1, Prefix: "big", Values: true}); len(items) != 3*maxPageBytes/len(value) {
		t.Errorf("%d items on all pages", len(items))
	}
}

// TestListManyExpired: a page is cut after a long run of expired keys, but goes on while it is empty, and the cut loses
// nothing, inside a group either.
func TestListManyExpired(t *testing.T) {
	f := newState(t)
	var ops []command.Op
	add := func(op command.Op) {
		if ops = append(ops, op); len(ops) == 1000 {
			f.at(1, ops...)
			ops = nil
		}
	}
	for i := range maxSkipped - 1 {
		add(putUntil(fmt.Sprintf("b%06d", i), "1", 5))
	}
	add(putUntil("g/", "1", 5)) // the key with its group's name is where the page would be cut
	for i := range 500 {
		add(putUntil(fmt.Sprintf("g/%06d", i), "1", 5))
	}
	for _, k := range []string{"a", "g/x", "h"} {
		add(put(k, "1"))
	}
	f.at(1, ops...)
	for delimiter, next := range map[string]string{"": "g/", "/": "g/000000"} {
		q := ListQuery{Namespace: ns1, Delimiter: delimiter, Now: 10}
		res, err := f.List(q)
		if err != nil || len(res.Items) != 1 || len(res.Prefixes) != 0 || res.Next != next {
			t.Errorf("first page: %d items, next %q, %v", len(res.Items), res.Next, err)
		}
		items, groups := pages(t, f, q)
		if got := len(items) + len(groups); got != 3 {
			t.Errorf("delimiter %q: %q %q", delimiter, names(items), groups)
		}
	}
	res, err := f.List(ListQuery{Namespace: ns1, After: "a", Now: 10})
	if err != nil || !slices.Equal(names(res.Items), []string{"g/x", "h"}) {
		t.Errorf("the page must go on until it has something: %+v, %v", res, err)
	}
}
