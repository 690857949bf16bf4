package cfrest

import (
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

var testNow = time.Unix(1_900_000_000, 900_000_000)

const (
	// nsA is the id of the fake's one namespace, nsNone is nobody's.
	nsA    = "0100000000000000000000000000000a"
	nsNone = "ffffffffffffffffffffffffffffffff"
	base   = "/client/v4/accounts/acc/storage/kv/namespaces"
)

// stored is one key of the fake.
type stored struct {
	value    string
	metadata string
	expiry   int64
}

// fake is a Service in memory with the semantics that the interface promises. What no test needs is the embedded nil.
type fake struct {
	api.Service
	mu      sync.Mutex // guards what follows
	spaces  map[kv.NamespaceID]string
	keys    map[kv.NamespaceID]map[string]stored
	written int // keys, in all
	staged  int // values
	lists   []api.ListRequest
	// stream makes Get hand out values as streams.
	stream bool
	// err fails every write of these keys; all is every key.
	err map[string]error
	// gone are keys that a listing shows as expired.
	gone map[string]bool
}

const all = "\x00all"

func newFake(t testing.TB) *fake {
	t.Helper()
	id, err := kv.ParseNamespaceID(nsA)
	if err != nil {
		t.Fatal(err)
	}
	return &fake{
		spaces: map[kv.NamespaceID]string{id: "a"}, keys: map[kv.NamespaceID]map[string]stored{id: {}},
		err: map[string]error{}, gone: map[string]bool{},
	}
}

func (f *fake) MeshTime() time.Time { return testNow }

func (f *fake) Namespace(_ context.Context, ref string) (kv.Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, title := range f.spaces {
		if ref == id.String() || ref == title {
			return kv.Namespace{ID: id, Title: title}, nil
		}
	}
	return kv.Namespace{}, kv.Errorf(kv.CodeNamespaceNotFound, "there is none of that name")
}

func (f *fake) Namespaces(context.Context) (out []kv.Namespace, _ error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, title := range f.spaces {
		out = append(out, kv.Namespace{ID: id, Title: title})
	}
	return out, nil
}

func (f *fake) taken(title string) error {
	if slices.Contains(slices.Collect(maps.Values(f.spaces)), title) {
		return kv.FieldErrorf(kv.CodeNamespaceExists, "title", "taken")
	}
	return nil
}

func (f *fake) CreateNamespace(_ context.Context, title string) (kv.Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.taken(title); err != nil {
		return kv.Namespace{}, err
	}
	id := kv.NamespaceID{byte(len(f.spaces) + 1)}
	f.spaces[id], f.keys[id] = title, map[string]stored{}
	return kv.Namespace{ID: id, Title: title}, nil
}

func (f *fake) RenameNamespace(_ context.Context, id kv.NamespaceID, title string) (kv.Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.taken(title); err != nil {
		return kv.Namespace{}, err
	}
	f.spaces[id] = title
	return kv.Namespace{ID: id, Title: title}, nil
}

func (f *fake) DeleteNamespace(_ context.Context, id kv.NamespaceID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.spaces, id)
	return nil
}

func (f *fake) Get(_ context.Context, req api.GetRequest) (*api.Value, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if req.CacheTTL != time.Minute {
		return nil, fmt.Errorf("a read with the limit %v", req.CacheTTL)
	}
	if err := f.err[req.Key]; err != nil {
		return nil, err
	}
	s, ok := f.keys[req.Namespace.ID][req.Key]
	if !ok {
		return &api.Value{Absent: true, Tier: api.TierHit}, nil
	}
	v := &api.Value{Bytes: []byte(s.value), Size: int64(len(s.value)), Expiry: s.expiry, Tier: api.TierHit}
	if s.metadata != "" {
		v.Metadata = []byte(s.metadata)
	}
	if f.stream {
		v.Bytes = nil
		v.Open = func(_ context.Context, offset, n int64) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader(s.value[offset : offset+n])), nil
		}
	}
	return v, nil
}

func (f *fake) Put(_ context.Context, req api.PutRequest) (api.WriteResult, error) {
	value, err := io.ReadAll(req.Body)
	if err != nil {
		return api.WriteResult{}, fmt.Errorf("wrapped: %v", err) // errors lose their form on the way
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.put(req.Namespace.ID, req.Key, stored{string(value), string(req.Metadata), req.Expiry})
}

func (f *fake) put(ns kv.NamespaceID, key string, s stored) (api.WriteResult, error) {
	if err := f.failing(key); err != nil {
		return api.WriteResult{}, err
	}
	f.written++
	f.keys[ns][key] = s
	return api.WriteResult{Revision: 1}, nil
}

func (f *fake) failing(key string) error {
	if err := f.err[all]; err != nil {
		return err
	}
	return f.err[key]
}

func (f *fake) Delete(_ context.Context, req api.DeleteRequest) (api.WriteResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.failing(req.Key); err != nil {
		return api.WriteResult{}, err
	}
	delete(f.keys[req.Namespace.ID], req.Key)
	return api.WriteResult{}, nil
}

type fakeStaged struct {
	key, value string
}

func (v *fakeStaged) Size() int64 { return int64(len(v.value)) }

func (f *fake) Stage(_ context.Context, req api.StageRequest) (api.Staged, error) {
	value, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, fmt.Errorf("wrapped: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.staged++
	return &fakeStaged{req.Key, string(value)}, nil
}

func (f *fake) WriteEach(_ context.Context, writes iter.Seq2[api.Write, func(api.WriteResult, error)]) error {
	for w, told := range writes {
		f.mu.Lock()
		var res api.WriteResult
		var err error
		switch v := w.Value.(type) {
		case nil:
			if err = f.failing(w.Key); err == nil {
				delete(f.keys[w.Namespace.ID], w.Key)
			}
		case *fakeStaged:
			if v.key != w.Key {
				err = fmt.Errorf("the value of %q is written to %q", v.key, w.Key)
			} else {
				res, err = f.put(w.Namespace.ID, w.Key, stored{v.value, string(w.Metadata), w.Expiry})
			}
		}
		f.mu.Unlock()
		told(res, err)
	}
	return nil
}

func (f *fake) List(_ context.Context, req api.ListRequest) (*api.ListPage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lists = append(f.lists, req)
	after := req.Cursor
	if after != "" {
		var ok bool
		if after, ok = strings.CutPrefix(after, "after-"); !ok {
			return nil, kv.FieldErrorf(kv.CodeInvalidCursor, "cursor", "no cursor of this mesh")
		}
	}
	page := &api.ListPage{Complete: true}
	for _, name := range slices.Sorted(maps.Keys(f.keys[req.Namespace.ID])) {
		if !strings.HasPrefix(name, req.Prefix) || name <= after {
			continue
		}
		if len(page.Keys) == req.Limit {
			page.Complete, page.Cursor = false, "after-"+page.Keys[len(page.Keys)-1].Name
			break
		}
		s := f.keys[req.Namespace.ID][name]
		k := api.ListKey{Name: name, Expiry: s.expiry}
		if f.gone[name] {
			k.Expiry = testNow.Unix()
		}
		if s.metadata != "" {
			k.Metadata = []byte(s.metadata)
		}
		page.Keys = append(page.Keys, k)
	}
	return page, nil
}

// rig is a surface over a fake.
type rig struct {
	t testing.TB
	*fake
	h http.Handler
}

func newRig(t testing.TB, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, fake: newFake(t)}
	o := Options{Service: r.fake, Account: func() Account { return Account{strings.Repeat("ab", 16), "mesh"} }}
	for _, c := range change {
		c(&o)
	}
	r.h = New(o)
	return r
}

// has is what the namespace A holds at a key, as "value metadata expiry".
func (r *rig) has(key string) string {
	id, _ := kv.ParseNamespaceID(nsA)
	s, ok := r.keys[id][key]
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%s|%s|%d", s.value, s.metadata, s.expiry)
}

// seed stores a key in the namespace A.
func (r *rig) seed(key, value, metadata string, expiry int64) {
	id, _ := kv.ParseNamespaceID(nsA)
	r.keys[id][key] = stored{value, metadata, expiry}
}

// do sends one request. headers are name, value, name, value …
func (r *rig) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	return r.send(method, target, strings.NewReader(body), headers...)
}

func (r *rig) send(method, target string, body io.Reader, headers ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	if strings.HasPrefix(target, "/{ns}") {
		target = base + "/" + nsA + strings.TrimPrefix(target, "/{ns}")
	}
	req := httptest.NewRequest(method, target, body)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, req)
	return w
}

// token allows requests with one bearer token.
type token string

func (t token) Check(r *http.Request) error {
	if r.Header.Get("Authorization") != "Bearer "+string(t) {
		return kv.Errorf(kv.CodeUnauthorized, "no")
	}
	return nil
}
