package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/node/auth"
	"kvmesh/node/devmesh"
	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

const account = "/client/v4/accounts/any-account"

// restAnswer is the envelope of the REST API.
type restAnswer struct {
	Success bool
	Errors  []struct {
		Code    int
		Message string
	}
	Result json.RawMessage
	Info   struct {
		Cursor string
	} `json:"result_info"`
}

// rest sends one request to the REST API and decodes the result.
func rest(t testing.TB, c *nodetest.Client, status int, method, target string, body []byte, result any, headers ...string) restAnswer {
	t.Helper()
	a := c.Must(t, status, method, target, body, headers...)
	var out restAnswer
	if err := json.Unmarshal(a.Body, &out); err != nil || out.Success != (status == 200) || out.Success != (len(out.Errors) == 0) {
		t.Fatalf("%s: %s %s: no envelope: %v", c.Name, method, target, a)
	}
	if result != nil {
		if err := json.Unmarshal(out.Result, result); err != nil {
			t.Fatalf("%s: %s %s: %v: %v", c.Name, method, target, err, a)
		}
	}
	return out
}

// testREST: what is written through the REST API of one node is there for both APIs of all, large or small, one by one or
// in bulk.
func testREST(t *testing.T, w *world) {
	var created struct{ ID string }
	rest(t, w.nodes[0], 200, http.MethodPost, account+"/storage/kv/namespaces", []byte(`{"title":"rest"}`), &created)
	w.has(t, "rest")
	ns := account + "/storage/kv/namespaces/" + created.ID
	var ids []string
	for _, c := range w.nodes {
		var accounts []struct{ ID string }
		rest(t, c, 200, http.MethodGet, "/client/v4/accounts?page=1", nil, &accounts)
		ids = append(ids, accounts[0].ID)
		if len(accounts) != 1 || len(ids[0]) != 32 || ids[len(ids)-1] != ids[0] {
			t.Errorf("%s: the accounts %v; the first node's is %s", c.Name, accounts, ids[0])
		}
	}
	for i, c := range w.nodes {
		o := w.nodes[(i+1)%len(w.nodes)]
		for _, size := range []int{0, 1000, kv.MaxInlineValueBytes + 1, kv.MaxCachedValueBytes + 1, 3 << 20} {
			value := randomBytes(size)
			name := fmt.Sprintf("%d%%2F%d", i, size)
			form := append([]byte("--B\r\nContent-Disposition: form-data; name=\"metadata\"\r\n\r\n{\"n\": 1}\r\n"+
				"--B\r\nContent-Disposition: form-data; name=\"value\"; filename=\"blob\"\r\n\r\n"), value...)
			form = append(form, "\r\n--B--\r\n"...)
			rest(t, c, 200, http.MethodPut, ns+"/values/raw"+name+"?expiration_ttl=1000", value, nil)
			rest(t, c, 200, http.MethodPut, ns+"/values/form"+name, form, nil, "Content-Type", "multipart/form-data; boundary=B")
			nodetest.Eventually(t, visible, "a value written by REST", func() error {
				for _, target := range []string{ns + "/values/raw" + name, ns + "/values/form" + name, "/v1/kv/rest/form" + name} {
					if err := o.Sees(t.Context(), target, value); err != nil {
						return err
					}
				}
				return nil
			})
			if raw := o.Must(t, 200, http.MethodGet, ns+"/values/raw"+name, nil); raw.Header.Get("Expiration") == "" {
				t.Errorf("%s: no expiration: %v", o.Name, raw)
			} else if size <= kv.MaxCachedValueBytes && raw.Header.Get("Kv-Cache") != "hit" {
				t.Errorf("%s: read again, and it comes from %s", o.Name, raw.Header.Get("Kv-Cache"))
			}
			if meta := rest(t, o, 200, http.MethodGet, ns+"/metadata/form"+name, nil, nil); string(meta.Result) != `{"n":1}` {
				t.Errorf("%s: metadata %s", o.Name, meta.Result)
			}
			rest(t, o, 200, http.MethodDelete, ns+"/values/raw"+name, nil, nil)
		}
	}
	testRESTBulk(t, w, ns)
	rest(t, w.nodes[1], 200, http.MethodDelete, ns, nil, nil)
	w.everywhere(t, "a namespace deleted by REST", func(ctx context.Context, c *nodetest.Client) error {
		a, err := c.Do(ctx, http.MethodGet, ns, nil)
		if err == nil && a.Status != 404 {
			err = fmt.Errorf("%s: %v", c.Name, a)
		}
		return err
	})
}

func testRESTBulk(t *testing.T, w *world, ns string) {
	type object = map[string]any
	const n = 2500
	big := strings.Repeat("ü", kv.MaxCachedValueBytes)
	items := []object{{"value": []byte{0, 255}, "key": "z/bin", "base64": true}, {"key": "z/big", "value": big, "expiration_ttl": 1000}}
	for i := range n {
		items = append(items, object{"key": fmt.Sprintf("bulk/%04d", i), "value": fmt.Sprint("v", i), "metadata": i})
	}
	send := func(c *nodetest.Client, method, target string, doc any) (done struct {
		N      int      `json:"successful_key_count"`
		Failed []string `json:"unsuccessful_keys"`
	},
	) {
		t.Helper()
		body, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		rest(t, c, 200, method, ns+target, body, &done)
		return done
	}
	if done := send(w.nodes[0], http.MethodPut, "/bulk", items); done.N != n+2 || len(done.Failed) != 0 {
		t.Fatalf("bulk put: %+v", done)
	}
	for _, c := range w.nodes {
		var names []string
		cursor := ""
		for {
			var keys []struct {
				Name     string
				Metadata int
			}
			page := rest(t, c, 200, http.MethodGet, ns+"/keys?prefix=bulk%2F&cursor="+cursor, nil, &keys)
			for _, k := range keys {
				if k.Name != fmt.Sprintf("bulk/%04d", k.Metadata) || k.Metadata != len(names) {
					t.Fatalf("%s: key %d of the listing is %+v", c.Name, len(names), k)
				}
				names = append(names, k.Name)
			}
			if cursor = page.Info.Cursor; cursor == "" {
				break
			}
		}
		var got struct{ Values map[string]*string }
		rest(t, c, 200, http.MethodPost, ns+"/bulk/get", []byte(`{"keys":["bulk/0007","none","z/big"]}`), &got)
		if len(names) != n || *got.Values["bulk/0007"] != "v7" || got.Values["none"] != nil || *got.Values["z/big"] != big {
			t.Errorf("%s: %d keys listed, of three: %.60v", c.Name, len(names), got.Values)
		}
		a := c.Must(t, 200, http.MethodGet, ns+"/values/z%2Fbin", nil)
		if !bytes.Equal(a.Body, []byte{0, 255}) {
			t.Errorf("%s: base64: %v", c.Name, a)
		}
		if bin := rest(t, c, 400, http.MethodPost, ns+"/bulk/get", []byte(`{"keys":["z/bin"]}`), nil); bin.Errors[0].Code != 10029 {
			t.Errorf("%s: a value that is no text: %+v", c.Name, bin.Errors)
		}
	}
	var names []string
	for _, it := range items {
		names = append(names, it["key"].(string))
	}
	if done := send(w.nodes[1], http.MethodDelete, "/bulk", names[:n]); done.N != n {
		t.Errorf("bulk delete: %+v", done)
	}
	if done := send(w.nodes[2], http.MethodPost, "/bulk/delete", names[n-10:]); done.N != 12 {
		t.Errorf("bulk delete: %+v", done)
	}
	var left []any
	if rest(t, w.nodes[2], 200, http.MethodGet, ns+"/keys?prefix=bulk%2F", nil, &left); len(left) != 0 {
		t.Errorf("after deleting all: %v", left)
	}
}

// TestRESTSettings: the token is asked for, in each of its headers, and --strict-limits takes one write a second.
func TestRESTSettings(t *testing.T) {
	bench(t)
	const secret = "0123456789abcdef0123456789abcdef"
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	token, err := auth.LoadToken(file)
	if err != nil {
		t.Fatal(err)
	}
	w := start(t, devmesh.Shape{Regions: []string{"one"}, Voters: 1, Token: token, StrictLimits: true, Hasty: true})
	c := w.nodes[0]
	var all []struct{ ID, Title string }
	spaces := account + "/storage/kv/namespaces"
	rest(t, c, 200, http.MethodGet, spaces, nil, &all, "X-Auth-Email", "a@b", "X-Auth-Key", secret)
	rest(t, c, 401, http.MethodGet, spaces, nil, nil)
	rest(t, c, 401, http.MethodPut, spaces+"/"+all[0].ID+"/values/k", []byte("v"), nil, "X-Auth-Key", secret[1:])
	c.Token = secret
	rest(t, c, 404, http.MethodGet, spaces+"/"+all[0].ID+"/values/k", nil, nil)
	rest(t, c, 200, http.MethodPut, spaces+"/"+all[0].ID+"/values/k", []byte("v"), nil)
	// Two writes within a second: the machine may be busy, so several tries.
	nodetest.Eventually(t, nodetest.Patience, "429 for a second write within a second", func() error {
		var last nodetest.Answer
		for range 2 {
			if last, err = c.Do(t.Context(), http.MethodPut, spaces+"/"+all[0].ID+"/values/k", []byte("v")); err != nil {
				return err
			}
		}
		if last.Status != 429 || last.Header.Get("Retry-After") == "" {
			return fmt.Errorf("%v", last)
		}
		return nil
	})
}
