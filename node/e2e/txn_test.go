package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// txnItem is what a transaction says of one key.
type txnItem struct {
	Namespace, Key, ETag string
	Revision             uint64
}

type txnAnswer struct {
	Error                  nodetest.Error
	Revision               uint64
	Bookmark               string
	Put, Delete, Conflicts []txnItem
}

type object = map[string]any

// txn sends one transaction; the status is one of 200 and 409.
func txn(t testing.TB, c *nodetest.Client, doc object) (out txnAnswer) {
	t.Helper()
	body, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Do(t.Context(), http.MethodPost, "/v1/txn", body)
	if err == nil {
		err = json.Unmarshal(a.Body, &out)
	}
	if err != nil || a.Status != 200 && a.Status != 409 || (a.Status == 409) != (len(out.Conflicts) > 0) || a.Header.Get("Kv-Bookmark") != out.Bookmark {
		t.Errorf("%s: %v: %v", c.Name, a, err)
	}
	return out
}

// testTransfers moves money between accounts from every node at once. At no moment does a strong view of all accounts show
// another sum, and every transfer that was acknowledged stands in the books, in another namespace, exactly once.
func testTransfers(t *testing.T, w *world) {
	const accounts, start, each = 6, 100, 12
	bank := strings.TrimSuffix(w.namespace(t, "bank"), "/")
	w.namespace(t, "books")
	name := func(i int) string { return fmt.Sprint("account", i) }
	var opened []object
	for i := range accounts {
		opened = append(opened, object{"namespace": "bank", "key": name(i), "value": strconv.Itoa(start)})
	}
	a := txn(t, w.nodes[0], object{"put": opened})
	if len(a.Put) != accounts || a.Put[accounts-1].Revision != a.Revision {
		t.Fatalf("%+v", a)
	}
	sum := func(c *nodetest.Client) (total int, err error) {
		a, err := c.Do(t.Context(), http.MethodGet, bank+"?values=true&consistency=strong", nil)
		var page struct{ Keys []struct{ Value []byte } }
		if err == nil {
			err = json.Unmarshal(a.Body, &page)
		}
		for _, k := range page.Keys {
			n, aerr := strconv.Atoi(string(k.Value))
			total, err = total+n, errors.Join(err, aerr)
		}
		return total, err
	}

	var done, conflicts atomic.Int64
	var writers, auditors sync.WaitGroup
	stop := make(chan struct{})
	for i, c := range w.nodes {
		writers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for n := 0; n < each && !t.Failed(); {
				from, to := rng.IntN(accounts), rng.IntN(accounts-1)
				if to >= from {
					to++
				}
				if transfer(t, c, bank, a.Bookmark, name(from), name(to), 1+rng.IntN(5), fmt.Sprintf("%d.%d", i, n)) {
					done.Add(1)
					n++
				} else {
					conflicts.Add(1)
				}
			}
		})
		auditors.Go(func() {
			for {
				if total, err := sum(c); err != nil || total != accounts*start {
					t.Errorf("%s: the accounts hold %d, want %d: %v", c.Name, total, accounts*start, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	auditors.Wait()
	if booked := len(list(t, w.nodes[1], "/v1/kv/books?consistency=strong").Keys); int64(booked) != done.Load() || done.Load() != int64(each*len(w.nodes)) {
		t.Errorf("%d transfers were acknowledged, the books have %d", done.Load(), booked)
	}
	t.Logf("%d transfers, %d conflicts", done.Load(), conflicts.Load())
}

// transfer reads two accounts, as they are at hand but not from before the bookmark, and moves an amount, if both are still as they were read.
func transfer(t *testing.T, c *nodetest.Client, bank, bookmark, from, to string, amount int, id string) bool {
	read, err := tryBulk(t.Context(), c, bank+aDay, object{"get": []string{from, to}}, "Kv-Bookmark", bookmark)
	if err != nil {
		t.Error(err)
		return false
	}
	var compare, put []object
	for i, g := range read.Get {
		n, err := strconv.Atoi(string(g.bytes()))
		if err != nil || g.Status != 200 {
			t.Errorf("%s: %+v", c.Name, g)
			return false
		}
		n += []int{-amount, amount}[i]
		compare = append(compare, object{"namespace": "bank", "key": g.Key, "etag": g.ETag})
		put = append(put, object{"namespace": "bank", "key": g.Key, "value": strconv.Itoa(n)})
	}
	compare = append(compare, object{"namespace": "books", "key": id, "exists": false})
	put = append(put, object{"namespace": "books", "key": id, "value": fmt.Sprint(from, " to ", to)})
	a := txn(t, c, object{"compare": compare, "put": put})
	if len(a.Conflicts) == 0 {
		for _, p := range a.Put[:2] { // whoever wrote sees it
			if rev := revisionOf(t, c, bank, p.Key); rev < p.Revision {
				t.Errorf("%s: %s is at revision %d after the transfer, which made it %d", c.Name, p.Key, rev, p.Revision)
			}
		}
		return true
	}
	for _, x := range a.Conflicts { // and whoever was told of a revision is not shown an older one
		if x.Namespace == "books" {
			t.Errorf("%s: the transfer %s is booked already", c.Name, id)
		} else if rev := revisionOf(t, c, bank, x.Key); rev < x.Revision {
			t.Errorf("%s: %s is at revision %d, and was said to be at %d", c.Name, x.Key, rev, x.Revision)
		}
	}
	return false
}

// revisionOf is what a default read shows.
func revisionOf(t *testing.T, c *nodetest.Client, ns, key string) uint64 {
	got, err := tryBulk(t.Context(), c, ns+aDay, object{"get": []string{key}})
	if err != nil {
		t.Error(err)
		return 0
	}
	return got.Get[0].Revision
}

// testTransactions: what they refuse, and what they do with values that do not fit into the log.
func testTransactions(t *testing.T, w *world) {
	w.namespace(t, "txn-a")
	w.namespace(t, "txn-b")
	for i, c := range w.nodes {
		key := fmt.Sprint("k", i)
		inline, large := randomBytes(kv.MaxInlineValueBytes), randomBytes(kv.MaxInlineValueBytes+1)
		a := txn(t, c, object{"put": []object{
			{"namespace": "txn-a", "key": key, "value_base64": inline, "metadata": 1},
			{"namespace": "txn-b", "key": key, "value_base64": large},
			{"namespace": "txn-b", "key": key + "streamed", "value_base64": randomBytes(kv.MaxCachedValueBytes + 1)},
		}})
		if len(a.Put) != 3 {
			t.Fatalf("%s: %+v", c.Name, a)
		}
		for _, o := range w.nodes {
			for ns, want := range map[string][]byte{"txn-a": inline, "txn-b": large} {
				g := bulk(t, o, "/v1/kv/"+ns, object{"get": []string{key}}, "Kv-Bookmark", a.Bookmark).Get[0]
				if string(g.bytes()) != string(want) {
					t.Errorf("%s: %s of %s has %d bytes: %+v", o.Name, key, ns, len(g.bytes()), g.Error)
				}
			}
		}
		// Nothing of a refused one is done, in no namespace.
		refused := txn(t, c, object{
			"compare": []object{
				{"namespace": "txn-a", "key": key, "revision": a.Put[0].Revision},
				{"namespace": "txn-b", "key": key, "revision": 1},
				{"namespace": "txn-b", "key": "none", "exists": true},
			},
			"put": []object{{"namespace": "txn-a", "key": key, "value": "no"}}, "delete": []object{{"namespace": "txn-b", "key": key}},
		})
		if x := refused.Conflicts; len(x) != 2 || x[0].Key != key || x[0].Revision != a.Put[1].Revision || x[1].Key != "none" || x[1].Revision != 0 {
			t.Errorf("%s: %+v", c.Name, refused)
		}
		strong := bulk(t, c, "/v1/kv/txn-a?consistency=strong", object{"get": []string{key}}).Get[0]
		if strong.Revision != a.Put[0].Revision {
			t.Errorf("%s: a refused transaction made revision %d of %d", c.Name, strong.Revision, a.Put[0].Revision)
		}
	}
	var many []object
	for i := range 10_000 {
		many = append(many, object{"namespace": "txn-a", "key": fmt.Sprint("m", i), "value": "v"})
	}
	full := txn(t, w.nodes[1], object{"put": many[:kv.MaxBatchOps]})
	if len(full.Put) != kv.MaxBatchOps || full.Put[kv.MaxBatchOps-1].Revision-full.Put[0].Revision != kv.MaxBatchOps-1 {
		t.Errorf("%d operations: %d", kv.MaxBatchOps, len(full.Put))
	}
	for _, n := range []int{kv.MaxBatchOps + 1, 10_000} {
		body, err := json.Marshal(object{"put": many[:n]})
		if err != nil {
			t.Fatal(err)
		}
		a := w.nodes[0].Must(t, 413, http.MethodPost, "/v1/txn", body)
		if e := a.Err(); e.Code != "request_too_large" || !strings.Contains(e.Message, "1024") || !strings.Contains(e.Message, "split") {
			t.Errorf("%d operations: %v", n, a)
		}
	}
}

// testRanges: parts of values that are in memory and of such that are streamed, at the edges of what is sealed as one
// piece.
func testRanges(t *testing.T, w *world) {
	ns := w.namespace(t, "ranges")
	for i, size := range []int{10, 200_000, kv.MaxCachedValueBytes + 70_000} {
		target, value := ns+strconv.Itoa(size), randomBytes(size)
		put := w.nodes[i].Must(t, 200, http.MethodPut, target, value)
		etag := put.Header.Get("ETag")
		for _, c := range w.nodes {
			nodetest.Eventually(t, visible, "the value", func() error { return c.Sees(t.Context(), target, value) })
			for _, from := range []int{0, 1, 65_475, 65_476, 65_477, 131_012, size - 2, size - 1} {
				for _, n := range []int{1, 2, 65_520, size} {
					if from >= size {
						continue
					}
					to := min(from+n, size)
					a := c.Must(t, 206, http.MethodGet, target, nil, "Range", fmt.Sprintf("bytes=%d-%d", from, from+n-1), "If-Range", etag)
					if string(a.Body) != string(value[from:to]) || a.Header.Get("Content-Range") != fmt.Sprintf("bytes %d-%d/%d", from, to-1, size) {
						t.Errorf("%s: %d bytes from %d of %d: %d bytes, %s", c.Name, n, from, size, len(a.Body), a.Header.Get("Content-Range"))
					}
				}
			}
			if a := c.Must(t, 206, http.MethodGet, target, nil, "Range", "bytes=-3"); string(a.Body) != string(value[size-3:]) {
				t.Errorf("%s: the last three bytes: %v", c.Name, a)
			}
			a := c.Must(t, 416, http.MethodGet, target, nil, "Range", fmt.Sprintf("bytes=%d-", size))
			if a.Header.Get("Content-Range") != fmt.Sprintf("bytes */%d", size) {
				t.Errorf("%s: beyond the end: %v", c.Name, a.Header)
			}
			c.Must(t, 304, http.MethodGet, target, nil, "If-None-Match", etag, "Range", "bytes=0-1")
			c.Must(t, 412, http.MethodGet, target, nil, "If-Match", `"00000000-1"`, "Range", "bytes=0-1")
			head := c.Must(t, 200, http.MethodHead, target, nil, "Range", "bytes=0-1")
			if head.Header.Get("Accept-Ranges") != "bytes" || head.Header.Get("Content-Length") != strconv.Itoa(size) {
				t.Errorf("%s: HEAD: %v", c.Name, head.Header)
			}
		}
		// Whoever goes on after the value was replaced gets all of the new one.
		w.nodes[i].Must(t, 200, http.MethodPut, target, value[1:])
		for _, c := range w.nodes {
			nodetest.Eventually(t, visible, "the new value", func() error { return c.Sees(t.Context(), target, value[1:]) })
			if a := c.Must(t, 200, http.MethodGet, target, nil, "Range", "bytes=5-", "If-Range", etag); string(a.Body) != string(value[1:]) {
				t.Errorf("%s: a range of a replaced value: %v", c.Name, a)
			}
		}
	}
}
