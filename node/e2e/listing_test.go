package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// listing is one page as it comes.
type listing struct {
	Keys []struct {
		Name       string
		Expiration int64
		Metadata   json.RawMessage
		Revision   uint64
		Value      *string
	}
	Prefixes []string
	Complete bool `json:"list_complete"`
	Cursor   string
}

func list(t *testing.T, c *nodetest.Client, target string) listing {
	t.Helper()
	var l listing
	a := c.Must(t, 200, http.MethodGet, target, nil)
	if err := json.Unmarshal(a.Body, &l); err != nil {
		t.Fatalf("%s: %s: %v: %s", c.Name, target, err, a.Body)
	}
	return l
}

func (l listing) names() []string {
	out := make([]string, 0, len(l.Keys))
	for _, k := range l.Keys {
		out = append(out, k.Name)
	}
	return out
}

func testListings(t *testing.T, w *world) {
	ns := w.namespace(t, "listings")
	names := []string{"a/1", "a/2", "a/b/3", "b", "ä", "z"} // in the order of their bytes
	for i, n := range []int{3, 1, 5, 4, 0, 2} {
		w.nodes[i%len(w.nodes)].Must(t, 200, http.MethodPut, ns+url.PathEscape(names[n]), []byte("value "+names[n]),
			"Kv-Metadata", strconv.Itoa(n))
	}
	all := strings.TrimSuffix(ns, "/")
	sorted := []string{"a/1", "a/2", "a/b/3", "b", "z", "ä"}
	w.everywhere(t, "all names", func(ctx context.Context, c *nodetest.Client) error {
		if got := list(t, c, all).names(); !slices.Equal(got, sorted) {
			return fmt.Errorf("%s lists %q, want %q", c.Name, got, sorted)
		}
		return nil
	})
	var foreign string // a cursor from one node serves at every other
	for _, c := range w.nodes {
		page := list(t, c, all+"?prefix=a/&values=true")
		if got := page.names(); !page.Complete || page.Cursor != "" || !slices.Equal(got, sorted[:3]) {
			t.Errorf("%s: prefix: %+v", c.Name, page)
		}
		for _, k := range page.Keys {
			if k.Value == nil {
				t.Fatalf("%s: no value in %+v", c.Name, k)
			}
			v, err := base64.StdEncoding.DecodeString(*k.Value)
			if err != nil || string(v) != "value "+k.Name || k.Revision == 0 || string(k.Metadata) != strconv.Itoa(slices.Index(names, k.Name)) {
				t.Errorf("%s: %+v has value %q (%v)", c.Name, k, v, err)
			}
		}
		page = list(t, c, all+"?prefix=a/&delimiter=/")
		if !slices.Equal(page.names(), []string{"a/1", "a/2"}) || !slices.Equal(page.Prefixes, []string{"a/b/"}) {
			t.Errorf("%s: delimiter: %+v", c.Name, page)
		}
		var got []string
		for cursor, pages := "", 0; ; pages++ {
			page := list(t, c, all+"?limit=2&cursor="+cursor)
			got = append(got, page.names()...)
			if page.Complete != (page.Cursor == "") || len(page.Keys) > 2 || pages > len(names) {
				t.Fatalf("%s: page %d: %+v", c.Name, pages, page)
			}
			if page.Complete {
				break
			}
			cursor = page.Cursor
			if pages == 0 {
				if foreign != "" {
					cursor = foreign
				}
				foreign = page.Cursor
			}
		}
		if !slices.Equal(got, sorted) {
			t.Errorf("%s: pages give %q, want %q", c.Name, got, sorted)
		}
		for _, other := range []string{all + "?limit=2&prefix=a&cursor=", all + "?delimiter=/&cursor=", "/v1/kv/default?cursor="} {
			if e := c.Must(t, 400, http.MethodGet, other+foreign, nil).Err(); e.Code != "invalid_cursor" || e.Field != "cursor" {
				t.Errorf("%s: a cursor of another query: %+v", c.Name, e)
			}
		}
	}
}

func testNamespaces(t *testing.T, w *world) {
	type doc struct{ ID, Title string }
	parse := func(a nodetest.Answer) (d doc) {
		t.Helper()
		if err := json.Unmarshal(a.Body, &d); err != nil || len(d.ID) != 32 {
			t.Fatalf("namespace: %v (%v)", a, err)
		}
		return d
	}
	for i, c := range w.nodes {
		other := w.nodes[(i+1)%len(w.nodes)]
		title := fmt.Sprintf("team/%d", i)
		ns := parse(c.Must(t, 201, http.MethodPut, "/v1/namespaces/"+title, nil))
		if again := parse(other.Must(t, 200, http.MethodPut, "/v1/namespaces/"+title, nil)); again != ns {
			t.Errorf("created again at %s: %+v, was %+v", other.Name, again, ns)
		}
		byTitle := "/v1/kv/" + url.PathEscape(title) + "/k"
		byID := "/v1/kv/" + ns.ID + "/k"
		other.Must(t, 200, http.MethodPut, byTitle, []byte("x"))
		if err := other.Sees(t.Context(), byID, []byte("x")); err != nil {
			t.Error(err)
		}
		w.everywhere(t, "by id", func(ctx context.Context, c *nodetest.Client) error { return c.Sees(ctx, byID, []byte("x")) })

		if e := c.Must(t, 409, http.MethodPut, "/v1/namespaces/"+title, []byte(`{"title":"default"}`)).Err(); e.Code != "namespace_exists" {
			t.Errorf("renamed to a title in use: %+v", e)
		}
		renamed := parse(c.Must(t, 200, http.MethodPut, "/v1/namespaces/"+title, []byte(`{"title":"renamed `+c.Name+`"}`)))
		if renamed.ID != ns.ID {
			t.Errorf("renamed: %+v, was %+v", renamed, ns)
		}
		newTitle := "/v1/kv/" + url.PathEscape(renamed.Title) + "/k"
		w.everywhere(t, "by its new title", func(ctx context.Context, c *nodetest.Client) error {
			return errors.Join(c.Sees(ctx, newTitle, []byte("x")), c.Sees(ctx, byID, []byte("x")),
				c.Gone(ctx, byTitle, "namespace_not_found"))
		})
		w.everywhere(t, "in the list", func(ctx context.Context, c *nodetest.Client) error {
			var all struct{ Namespaces []doc }
			a := c.Must(t, 200, http.MethodGet, "/v1/namespaces", nil)
			if err := json.Unmarshal(a.Body, &all); err != nil || !slices.Contains(all.Namespaces, renamed) {
				return fmt.Errorf("%s lists %s (%v)", c.Name, a.Body, err)
			}
			if got := parse(c.Must(t, 200, http.MethodGet, "/v1/namespaces/"+ns.ID, nil)); got != renamed {
				return fmt.Errorf("%s: %+v", c.Name, got)
			}
			return nil
		})
	}
}

// testCounters: a namespace's keys and bytes are right whatever is done to it: at the node that did it at once, and everywhere
// soon.
func testCounters(t *testing.T, w *world) {
	ns := w.namespace(t, "counted")
	type counts struct{ Keys, Bytes *int64 }
	read := func(ctx context.Context, c *nodetest.Client) (keys, bytes int64, err error) {
		a, err := c.Do(ctx, http.MethodGet, "/v1/namespaces/counted", nil)
		var got counts
		if err == nil {
			err = json.Unmarshal(a.Body, &got)
		}
		if err != nil || got.Keys == nil || got.Bytes == nil {
			return 0, 0, fmt.Errorf("%s: %v (%w)", c.Name, a, err)
		}
		return *got.Keys, *got.Bytes, nil
	}
	sizes := map[string]int64{} // of the values
	check := func(writer *nodetest.Client) {
		t.Helper()
		keys, bytes := int64(len(sizes)), int64(0)
		for key, n := range sizes {
			bytes += int64(len(key)) + n
		}
		if k, b, err := read(t.Context(), writer); err != nil || k != keys || b != bytes {
			t.Errorf("%s, after its own write: %d keys, %d bytes, want %d and %d (%v)", writer.Name, k, b, keys, bytes, err)
		}
		w.everywhere(t, "the counters", func(ctx context.Context, c *nodetest.Client) error {
			k, b, err := read(ctx, c)
			if err == nil && (k != keys || b != bytes) {
				err = fmt.Errorf("%s: %d keys, %d bytes, want %d and %d", c.Name, k, b, keys, bytes)
			}
			return err
		})
	}
	check(w.nodes[0])
	put := func(c *nodetest.Client, key string, size int, query string) {
		t.Helper()
		c.Must(t, 200, http.MethodPut, ns+key+query, randomBytes(size))
		sizes[key] = int64(size)
	}
	for i, c := range w.nodes {
		put(c, "own"+strconv.Itoa(i), 100*i, "")
		put(c, "shared", []int{10, kv.MaxInlineValueBytes + 1, 0}[i%3], "")
		put(c, "short-lived", 50, "?expiration_ttl=1")
		delete(sizes, "short-lived") // as soon as it is swept
		if i > 0 {
			gone := "own" + strconv.Itoa(i-1)
			c.Must(t, 200, http.MethodDelete, ns+gone, nil)
			delete(sizes, gone)
		}
		nodetest.Eventually(t, visible, "the sweep", func() error {
			k, _, err := read(t.Context(), c)
			if err == nil && k != int64(len(sizes)) {
				err = fmt.Errorf("%d keys", k)
			}
			return err
		})
		check(c)
	}
}

// testDeletedNamespace: what every node has in its cache is gone with its namespace, also for a later one of that title.
func testDeletedNamespace(t *testing.T, w *world) {
	for i, c := range w.nodes {
		ns := w.namespace(t, "doomed")
		target := ns + "k" + aDay
		c.Must(t, 200, http.MethodPut, ns+"k", []byte("secret"))
		w.everywhere(t, "cached", func(ctx context.Context, o *nodetest.Client) error { return o.Sees(ctx, target, []byte("secret")) })
		w.nodes[(i+1)%len(w.nodes)].Must(t, 200, http.MethodDelete, "/v1/namespaces/doomed", nil)
		w.everywhere(t, "gone", func(ctx context.Context, o *nodetest.Client) error { return o.Gone(ctx, target, "namespace_not_found") })
		if a, err := c.Do(t.Context(), http.MethodPut, ns+"k", []byte("x")); err != nil || a.Err().Code != "namespace_not_found" {
			t.Errorf("%s: a write to a deleted namespace: %v %v", c.Name, a, err)
		}
		w.namespace(t, "doomed")
		w.everywhere(t, "a new one is empty", func(ctx context.Context, o *nodetest.Client) error { return o.Gone(ctx, target, "key_not_found") })
		c.Must(t, 200, http.MethodDelete, "/v1/namespaces/doomed", nil)
		w.everywhere(t, "gone again", func(ctx context.Context, o *nodetest.Client) error { return o.Gone(ctx, target, "namespace_not_found") })
	}
}
