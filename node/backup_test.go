package node_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvmesh/node/certs"
	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// logical is everything that clients see of a mesh, one line a key, by strong reads at one node.
func logical(t *testing.T, c *nodetest.Client) string {
	t.Helper()
	var out strings.Builder
	var spaces struct {
		Namespaces []struct{ ID, Title string }
	}
	decode := func(target string, into any) {
		t.Helper()
		a := insist(t, c, http.MethodGet, target, nil)
		if err := json.Unmarshal(a.Body, into); err != nil {
			t.Fatalf("%s: %v", target, err)
		}
	}
	decode("/v1/namespaces", &spaces)
	for _, ns := range spaces.Namespaces {
		fmt.Fprintf(&out, "%s %s\n", ns.ID, ns.Title)
		for cursor := ""; ; {
			var page struct {
				Keys []struct {
					Name       string
					Expiration int64
					Metadata   json.RawMessage
					Revision   uint64
				}
				Cursor string
			}
			decode("/v1/kv/"+ns.ID+"?consistency=strong&cursor="+url.QueryEscape(cursor), &page)
			for _, k := range page.Keys {
				a := insist(t, c, http.MethodGet, "/v1/kv/"+ns.ID+"/"+url.PathEscape(k.Name)+"?consistency=strong", nil)
				fmt.Fprintf(&out, "  %q at %d, until %d, %s: %d bytes %x\n", k.Name, k.Revision, k.Expiration, k.Metadata, len(a.Body), sha256.Sum256(a.Body))
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
	}
	return out.String()
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(b) // never fails
	return b
}

// insist sends a request until it is answered with a success: a busy machine loses a leader now and then, and each of these
// requests may be carried out twice.
func insist(t *testing.T, c *nodetest.Client, method, target string, body []byte, headers ...string) (a nodetest.Answer) {
	t.Helper()
	nodetest.Eventually(t, nodetest.Patience, method+" "+target, func() (err error) {
		a, err = c.Do(t.Context(), method, target, body, headers...)
		if err == nil && a.Status/100 != 2 {
			err = fmt.Errorf("%s: %v", c.Name, a)
		}
		return err
	})
	return a
}

// fill writes all kinds of keys.
func fill(t *testing.T, c *nodetest.Client) {
	t.Helper()
	for _, title := range []string{"site", "before", "dropped", "none in it"} {
		insist(t, c, http.MethodPut, "/v1/namespaces/"+url.PathEscape(title), nil)
	}
	insist(t, c, http.MethodPut, "/v1/namespaces/before", []byte(`{"title":"after"}`))
	for name, size := range map[string]int{
		"small": 10, "a%2F%2Fb": 100, "apart": 5000, "inline": kv.MaxInlineValueBytes, "blob": kv.MaxInlineValueBytes + 1,
		"blob-2": 1 << 20, "streamed": 3<<20 + 17, "%C3%BC": 1,
	} {
		insist(t, c, http.MethodPut, "/v1/kv/site/"+name, noise(size), "Kv-Metadata", `{"size":`+strconv.Itoa(size)+`}`)
		insist(t, c, http.MethodPut, "/v1/kv/default/"+name, noise(size+1))
	}
	insist(t, c, http.MethodPut, "/v1/kv/after/empty", []byte{}, "Kv-Metadata", `"x"`)
	insist(t, c, http.MethodPut, "/v1/kv/after/mortal?expiration_ttl=86400", []byte("m"))
	insist(t, c, http.MethodPut, "/v1/kv/after/gone", noise(100_000))
	insist(t, c, http.MethodDelete, "/v1/kv/after/gone", nil)
	insist(t, c, http.MethodPut, "/v1/kv/dropped/k", noise(100_000))
	insist(t, c, http.MethodDelete, "/v1/namespaces/dropped", nil)
	for i := range 40 {
		insist(t, c, http.MethodPut, fmt.Sprintf("/v1/kv/after/many-%d", i), noise(i*40))
	}
}

func kekOf(t testing.TB, k certs.MeshKey) *seal.KEK {
	t.Helper()
	kek, err := seal.NewKEK(k.KEK())
	if err != nil {
		t.Fatal(err)
	}
	return kek
}

func save(t *testing.T, c *nodetest.Client) []byte {
	t.Helper()
	return insist(t, c, http.MethodGet, "/v1/backup", nil).Body
}

// TestBackupRoundTrip: a backup, taken at an edge, brings the same content into a mesh of another size with another key,
// and from there back into the first one, which has moved on meanwhile.
func TestBackupRoundTrip(t *testing.T) {
	mine, other := certs.NewMeshKey(), certs.NewMeshKey()
	a := nodetest.Start(t, devmesh.Shape{Regions: []string{"here", "there"}, Voters: 3, EdgesPerRegion: 1, MeshKey: mine, Patient: true})
	b := nodetest.Start(t, devmesh.Shape{Regions: []string{"solo"}, Voters: 1, EdgesPerRegion: 1, MeshKey: other})
	as, bs := nodetest.Clients(a), nodetest.Clients(b)
	fill(t, as[0])
	mortal := insist(t, as[0], http.MethodPut, "/v1/kv/default/short-lived?expiration_ttl=1", []byte("s"))
	nodetest.Eventually(t, nodetest.Patience, "a key that expires", func() error {
		return as[0].Gone(t.Context(), "/v1/kv/default/short-lived", "key_not_found")
	})
	want := logical(t, as[0])
	insist(t, as[0], http.MethodPut, "/v1/kv/default/brief?expiration_ttl=2", []byte("b")) // expires between backup and restore
	first := save(t, as[0])
	insist(t, as[1], http.MethodPut, "/v1/kv/default/later", []byte("l"))
	if s, err := backup.Check(bytes.NewReader(first)); err != nil || s.Key != kekOf(t, mine).String() {
		t.Fatalf("checked: %+v, %v", s, err)
	}

	// Sealed for the other mesh, at its edge. It is empty, so that needs no leave.
	r, err := backup.Readdress(bytes.NewReader(first), kekOf(t, mine), kekOf(t, other).Address())
	if err != nil {
		t.Fatal(err)
	}
	handed, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	seen := newest(t, bs, "default")
	res := restored(t, insist(t, bs[0], http.MethodPost, "/v1/backup", handed))
	nodetest.Eventually(t, nodetest.Patience, "what has expired since the backup", func() error {
		return bs[0].Gone(t.Context(), "/v1/kv/default/brief", "key_not_found")
	})
	if got := logical(t, bs[0]); got != want {
		t.Errorf("in the other mesh:\n%s\nwant\n%s", got, want)
	}
	if res.Revision <= seen || res.Namespaces != 4 || res.LargeValues != 7 {
		t.Errorf("restored %+v after revision %d", res, seen)
	}
	_, rev, _ := strings.Cut(mortal.Header.Get("Kv-Bookmark"), ".")
	if s := strconv.FormatUint(res.From, 10); s < rev {
		t.Errorf("the backup is of revision %s, %s was acknowledged before", s, rev)
	}

	// And back, at a voter, over all that is there.
	second := save(t, bs[1])
	if r, err = backup.Readdress(bytes.NewReader(second), kekOf(t, other), kekOf(t, mine).Address()); err != nil {
		t.Fatal(err)
	}
	if handed, err = io.ReadAll(r); err != nil {
		t.Fatal(err)
	}
	last := as[len(as)-1]
	refused := last.Must(t, 400, http.MethodPost, "/v1/backup", handed)
	if e := refused.Err(); e.Field != "replace" || !strings.Contains(e.Message, " keys in 4 namespaces (after, default,") {
		t.Errorf("data would be replaced: %v", refused)
	}
	insist(t, last, http.MethodPost, "/v1/backup?replace=true", handed)
	for _, c := range as {
		nodetest.Eventually(t, nodetest.Patience, "the old content", func() error {
			return c.Gone(t.Context(), "/v1/kv/default/later", "key_not_found")
		})
		if got := logical(t, c); got != want {
			t.Errorf("%s, after the way back:\n%s\nwant\n%s", c.Name, got, want)
		}
	}
	insist(t, as[0], http.MethodPut, "/v1/kv/after/next", noise(100_000)) // it goes on
	insist(t, as[1], http.MethodDelete, "/v1/kv/site/blob", nil)
}

type restoredDoc struct {
	Epoch                             string
	Revision, Namespaces, Keys, Bytes uint64
	From                              uint64 `json:"from_revision"`
	LargeValues                       uint64 `json:"large_values"`
}

func restored(t *testing.T, a nodetest.Answer) (doc restoredDoc) {
	t.Helper()
	if err := json.Unmarshal(a.Body, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// newest is the revision of a mesh, by a strong listing.
func newest(t *testing.T, nodes []*nodetest.Client, ns string) uint64 {
	t.Helper()
	a := insist(t, nodes[0], http.MethodGet, "/v1/kv/"+ns+"?consistency=strong", nil)
	_, rev, _ := strings.Cut(a.Header.Get("Kv-Bookmark"), ".")
	n, err := strconv.ParseUint(rev, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// opened reads the small values of one namespace out of a backup.
func opened(t *testing.T, b []byte, kek *seal.KEK, title string) map[string]string {
	t.Helper()
	r, err := backup.NewReader(bytes.NewReader(b))
	if err == nil {
		err = r.Unlock(kek)
	}
	out := map[string]string{}
	var key *seal.DataKey
	var ns kv.NamespaceID
	for err == nil {
		var rec *backup.Record
		if rec, err = r.Next(); err != nil {
			break
		}
		switch rec.Kind {
		case backup.KindNamespace:
			if key = nil; rec.Namespace.Title == title {
				var wrapped []byte
				wrapped, err = r.Rewrap(kek, &rec.Namespace)
				if err == nil {
					key, err = kek.Unwrap(rec.Namespace.ID, wrapped)
				}
				ns = rec.Namespace.ID
			}
		case backup.KindKey:
			if key != nil && rec.Blob == 0 {
				var plain []byte
				plain, err = key.Open(seal.FieldValue, ns, rec.Key, rec.Item.WriteID, rec.Item.Value)
				out[rec.Key] = string(plain)
			}
		}
	}
	if err != io.EOF {
		t.Fatal(err)
	}
	return out
}

// TestBackupIsOneMoment: while many write, a backup shows one moment: everything acknowledged before it, and of writes that
// came one after the other never the later one without the earlier.
func TestBackupIsOneMoment(t *testing.T) {
	key := certs.NewMeshKey()
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, EdgesPerRegion: 1, MeshKey: key, Patient: true})
	nodes := nodetest.Clients(m)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const writers = 4
	var acked [writers]atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := int64(1); ctx.Err() == nil; n++ {
				for _, half := range []string{"first", "second"} {
					target := fmt.Sprintf("/v1/kv/default/%s-%d", half, w)
					for { // until it is acknowledged: written twice it is the same
						a, err := nodes[w].Do(ctx, http.MethodPut, target, []byte(strconv.FormatInt(n, 10)))
						if err == nil && a.Status == 200 || ctx.Err() != nil {
							break
						}
					}
				}
				if ctx.Err() == nil {
					acked[w].Store(n)
				}
			}
		})
	}
	rounds := 0
	for deadline := time.Now().Add(nodetest.Patience); rounds < 8 && time.Now().Before(deadline); {
		var before [writers]int64
		for w := range before {
			before[w] = acked[w].Load()
		}
		if slices.Min(before[:]) == 0 {
			time.Sleep(nodetest.Pause)
			continue
		}
		values := opened(t, save(t, nodes[rounds%len(nodes)]), kekOf(t, key), "default")
		for w := range writers {
			first, err1 := strconv.ParseInt(values[fmt.Sprintf("first-%d", w)], 10, 64)
			second, err2 := strconv.ParseInt(values[fmt.Sprintf("second-%d", w)], 10, 64)
			if err1 != nil || err2 != nil || second < before[w] || first < second || first > second+1 {
				t.Errorf("writer %d: %d and %d in the backup, %d were acknowledged before it (%v, %v)", w, first, second, before[w], err1, err2)
			}
		}
		rounds++
	}
	cancel()
	wg.Wait()
	if rounds < 8 {
		t.Errorf("%d backups in %v", rounds, nodetest.Patience)
	}
}

// TestRestoreIsAllOrNothing: whatever is wrong with a backup, it is refused in plain words and nothing has changed, the
// epoch included; a good one is taken right after.
func TestRestoreIsAllOrNothing(t *testing.T) {
	key := certs.NewMeshKey()
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 1, EdgesPerRegion: 1, MeshKey: key})
	nodes := nodetest.Clients(m)
	fill(t, nodes[0])
	good := save(t, nodes[1])
	insist(t, nodes[0], http.MethodPut, "/v1/kv/default/only-here", []byte("x"))
	before, status := logical(t, nodes[0]), must(nodes[0].Cluster(t.Context()))(t)
	damaged := bytes.Clone(good)
	damaged[len(good)*3/4] ^= 1
	future := bytes.Clone(good)
	future[len("kvmesh-backup\n")] = 9
	foreign := func() []byte {
		var b bytes.Buffer
		w, err := backup.NewWriter(&b, backup.Header{Revision: 1}, kekOf(t, certs.NewMeshKey()))
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}()
	for name, tc := range map[string]struct {
		body []byte
		says string
	}{
		"damaged":             {damaged, "damaged"},
		"cut in the middle":   {good[:len(good)/2], "cut short"},
		"without its end":     {good[:len(good)-1], "cut short"},
		"something behind it": {append(bytes.Clone(good), 0), "damaged"},
		"of the future":       {future, "another version"},
		"of another mesh":     {foreign, "--source-mesh-key"},
		"quite another thing": {noise(100_000), "not a backup"},
		"nothing":             {[]byte{}, "not a backup"},
	} {
		for _, c := range nodes {
			var a nodetest.Answer
			nodetest.Eventually(t, nodetest.Patience, name, func() (err error) { // a busy leader may say that it is
				a, err = c.Do(t.Context(), http.MethodPost, "/v1/backup?replace=true", tc.body)
				if err == nil && a.Status != 400 {
					err = fmt.Errorf("%s: %v, want status 400", c.Name, a)
				}
				return err
			})
			if e := a.Err(); e.Code != "invalid_body" || !strings.Contains(e.Message, tc.says) || !strings.Contains(e.Message, "nothing was restored") {
				t.Errorf("%s: %v", name, a)
			}
		}
	}
	for target, field := range map[string]string{"/v1/backup": "replace", "/v1/backup?replace=1": "replace", "/v1/backup?force=true": "force"} {
		if a := nodes[0].Must(t, 400, http.MethodPost, target, good); a.Err().Field != field {
			t.Errorf("%s: %v", target, a)
		}
	}
	if got := logical(t, nodes[0]); got != before {
		t.Errorf("something changed:\n%s\nwant\n%s", got, before)
	}
	if now := must(nodes[0].Cluster(t.Context()))(t); now.Epoch != status.Epoch {
		t.Errorf("epoch %s became %s", status.Epoch, now.Epoch)
	}
	insist(t, nodes[0], http.MethodPost, "/v1/backup?replace=true", good)
	nodetest.Eventually(t, nodetest.Patience, "the restored content", func() error {
		return nodes[1].Gone(t.Context(), "/v1/kv/default/only-here", "key_not_found")
	})
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestRestoreReachesEveryCache restores again and again under readers: every node comes to answer what was restored, and
// none goes back to what it answered before that. Nothing given before means anything any more.
func TestRestoreReachesEveryCache(t *testing.T) {
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"us-east", "eu-west"}, Voters: 3, EdgesPerRegion: 2, Patient: true})
	nodes := nodetest.Clients(m)
	const target = "/v1/kv/default/k?cache_ttl=86400"
	for round := range 3 {
		restoredValue, later := fmt.Sprint("restored ", round), fmt.Sprint("later ", round)
		insist(t, nodes[0], http.MethodPut, "/v1/kv/default/k", []byte(restoredValue))
		b := save(t, nodes[round])
		put := insist(t, nodes[0], http.MethodPut, "/v1/kv/default/k", []byte(later))
		insist(t, nodes[0], http.MethodPut, "/v1/kv/default/absent", []byte("before the restore"))
		for _, c := range nodes {
			nodetest.Eventually(t, nodetest.Patience, "a cached copy", func() error { return c.Sees(t.Context(), target, []byte(later)) })
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, c := range nodes {
			wg.Go(func() {
				back := false
				for ctx.Err() == nil {
					a, err := c.Do(ctx, http.MethodGet, target, nil)
					if err != nil || a.Status == 503 || a.Header.Get("Kv-Cache") == "stale" {
						continue // the last one says of itself that it may be anything
					}
					switch string(a.Body) {
					case restoredValue:
						back = true
					case later:
						if back {
							t.Errorf("%s: %q after %q", c.Name, later, restoredValue)
						}
					default:
						t.Errorf("%s: %v", c.Name, a)
					}
				}
			})
		}
		at := nodes[(round+1)%len(nodes)]
		done := insist(t, at, http.MethodPost, "/v1/backup?replace=true", b)
		for _, c := range nodes { // whoever has the bookmark sees it at once
			a := insist(t, c, http.MethodGet, target, nil, "Kv-Bookmark", done.Header.Get("Kv-Bookmark"))
			if string(a.Body) != restoredValue {
				t.Errorf("%s, with the bookmark of the restore: %v", c.Name, a)
			}
		}
		for _, c := range nodes {
			nodetest.Eventually(t, nodetest.Patience, "the restored value", func() error { return c.Sees(t.Context(), target, []byte(restoredValue)) })
			nodetest.Eventually(t, nodetest.Patience, "the key that was not there", func() error {
				return c.Gone(t.Context(), "/v1/kv/default/absent?cache_ttl=86400", "key_not_found")
			})
			c.Must(t, 412, http.MethodPut, "/v1/kv/default/k", []byte("lost"), "If-Match", put.Header.Get("ETag"))
			a := insist(t, c, http.MethodGet, "/v1/kv/default/k", nil, "Kv-Bookmark", put.Header.Get("Kv-Bookmark"))
			if string(a.Body) != restoredValue || a.Header.Get("Kv-Cache") != "store" {
				t.Errorf("%s, with an old bookmark: %v", c.Name, a)
			}
		}
		cancel()
		wg.Wait()
	}
}

// TestBackupHeals: a large value's file that is damaged, cut or missing on the voter that makes the backup comes from
// another one.
func TestBackupHeals(t *testing.T) {
	key := certs.NewMeshKey()
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, MeshKey: key, Patient: true})
	nodes := nodetest.Clients(m)
	for i := range 3 {
		insist(t, nodes[0], http.MethodPut, fmt.Sprint("/v1/kv/default/large-", i), noise(200_000+i))
	}
	want := logical(t, nodes[0])
	var files []string
	nodetest.Eventually(t, nodetest.Patience, "the files at the voter", func() error {
		files = nil
		err := filepath.WalkDir(filepath.Join(m.Dir(0), "blobs"), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) != "tmp" {
				files = append(files, path)
			}
			return err
		})
		if err == nil && len(files) != 3 {
			err = fmt.Errorf("%d files", len(files))
		}
		return err
	})
	content, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	content[150_000] ^= 1 // in the third segment
	for i, do := range []func() error{
		func() error { return os.WriteFile(files[0], content, 0o600) },
		func() error { return os.Truncate(files[1], 100_000) },
		func() error { return os.Remove(files[2]) },
	} {
		if err := do(); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	b := save(t, nodes[0])
	insist(t, nodes[1], http.MethodPost, "/v1/backup?replace=true", b)
	if got := logical(t, nodes[1]); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestBackupWithoutALeader is refused, unless it may be stale.
func TestBackupWithoutALeader(t *testing.T) {
	key := certs.NewMeshKey()
	m := nodetest.Start(t, devmesh.Shape{Regions: []string{"here"}, Voters: 3, MeshKey: key, Patient: true})
	nodes := nodetest.Clients(m)
	insist(t, nodes[0], http.MethodPut, "/v1/kv/default/k", []byte("v"))
	for _, c := range nodes {
		nodetest.Eventually(t, nodetest.Patience, "the value", func() error { return c.Sees(t.Context(), "/v1/kv/default/k", []byte("v")) })
	}
	ctx, cancel := context.WithTimeout(t.Context(), nodetest.Patience)
	defer cancel()
	for _, n := range m.Nodes[1:] {
		if err := n.Stop(ctx); err != nil {
			t.Fatal(err)
		}
	}
	m.Nodes, m.Members = m.Nodes[:1], m.Members[:1]
	a := nodes[0].Must(t, 503, http.MethodGet, "/v1/backup", nil)
	if e := a.Err(); e.Code != "no_leader" || !strings.Contains(e.Message, "stale=true") || a.Header.Get("Retry-After") == "" {
		t.Errorf("%v", a)
	}
	b := insist(t, nodes[0], http.MethodGet, "/v1/backup?stale=true", nil).Body
	if got := opened(t, b, kekOf(t, key), "default"); got["k"] != "v" {
		t.Errorf("the stale backup holds %q", got)
	}
}
