package api

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"iter"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

// testEpoch ends in the bytes that its ETags start with.
var testEpoch = kv.Epoch{0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0xde, 0xad, 0xbe, 0xef}

var testNow = time.Unix(1_900_000_000, 500_000_000)

// stored is one key of the fake.
type stored struct {
	value, metadata []byte
	revision        kv.Revision
	expiry          int64
}

// fakeService is a Service in memory with the semantics that the interface promises.
type fakeService struct {
	mu       sync.Mutex // guards what follows
	now      time.Time
	revision kv.Revision
	spaces   map[kv.NamespaceID]string
	stats    map[kv.NamespaceID]NamespaceStats // nil: no voter can be asked
	keys     map[string]stored                 // namespace title, NUL, key
	calls    int
	gets     []GetRequest
	lists    []ListRequest
	staged   []*fakeStaged
	txns     []TxnRequest

	// onGet and onPut, when set, replace the method; they are set before the first call.
	onGet func(ctx context.Context, req GetRequest) (*Value, error)
	onPut func(ctx context.Context, req PutRequest) (WriteResult, error)

	onWriteEach func(ctx context.Context, writes iter.Seq2[Write, func(WriteResult, error)]) error
	// err, when set, is what every method returns.
	err error
}

func newFake() *fakeService {
	return &fakeService{
		now: testNow, spaces: map[kv.NamespaceID]string{{1}: "default"}, keys: map[string]stored{},
	}
}

func (f *fakeService) enter() error {
	f.mu.Lock()
	f.calls++
	return f.err
}

func (f *fakeService) Namespace(_ context.Context, ref string) (kv.Namespace, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return kv.Namespace{}, err
	}
	if id, err := kv.ParseNamespaceID(ref); err == nil {
		if title, ok := f.spaces[id]; ok {
			return kv.Namespace{ID: id, Title: title}, nil
		}
	}
	for id, title := range f.spaces {
		if title == ref {
			return kv.Namespace{ID: id, Title: title, WrappedKey: []byte("secret")}, nil
		}
	}
	return kv.Namespace{}, kv.FieldErrorf(kv.CodeNamespaceNotFound, "namespace", "no such namespace")
}

func (f *fakeService) Namespaces(context.Context) ([]kv.Namespace, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	var all []kv.Namespace
	for id, title := range f.spaces {
		all = append(all, kv.Namespace{ID: id, Title: title, WrappedKey: []byte("secret")})
	}
	slices.SortFunc(all, func(a, b kv.Namespace) int { return strings.Compare(a.Title, b.Title) })
	return all, nil
}

func (f *fakeService) NamespaceStats(_ context.Context, ids []kv.NamespaceID) (map[kv.NamespaceID]NamespaceStats, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	if f.stats == nil {
		return nil, kv.Errorf(kv.CodeUnavailable, "no voter")
	}
	return f.stats, nil
}

func (f *fakeService) taken(title string) bool {
	return slices.Contains(slices.Collect(maps.Values(f.spaces)), title)
}

func (f *fakeService) CreateNamespace(_ context.Context, title string) (kv.Namespace, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return kv.Namespace{}, err
	}
	if f.taken(title) {
		return kv.Namespace{}, kv.Errorf(kv.CodeNamespaceExists, "taken")
	}
	id := kv.NamespaceID{byte(len(f.spaces) + 1)}
	f.spaces[id] = title
	return kv.Namespace{ID: id, Title: title}, nil
}

func (f *fakeService) RenameNamespace(_ context.Context, id kv.NamespaceID, title string) (kv.Namespace, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return kv.Namespace{}, err
	}
	if f.taken(title) {
		return kv.Namespace{}, kv.FieldErrorf(kv.CodeNamespaceExists, "title", "taken")
	}
	f.spaces[id] = title
	return kv.Namespace{ID: id, Title: title}, nil
}

func (f *fakeService) DeleteNamespace(_ context.Context, id kv.NamespaceID) error {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return err
	}
	delete(f.spaces, id)
	return nil
}

func (f *fakeService) Get(ctx context.Context, req GetRequest) (*Value, error) {
	if f.onGet != nil {
		return f.onGet(ctx, req)
	}
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	f.gets = append(f.gets, req)
	v := &Value{Epoch: testEpoch, AsOf: f.revision, Tier: TierHit, Staleness: 1500*time.Millisecond + time.Microsecond}
	s, ok := f.keys[req.Namespace.Title+"\x00"+req.Key]
	if !ok {
		v.Absent = true
		return v, nil
	}
	v.Revision, v.Metadata, v.Expiry = s.revision, s.metadata, s.expiry
	v.Size, v.Bytes = int64(len(s.value)), s.value
	return v, nil
}

func (f *fakeService) Put(ctx context.Context, req PutRequest) (WriteResult, error) {
	if f.onPut != nil {
		return f.onPut(ctx, req)
	}
	value, err := io.ReadAll(req.Body)
	defer f.mu.Unlock()
	if stop := f.enter(); stop != nil {
		return WriteResult{}, stop
	}
	if err != nil {
		return WriteResult{}, err
	}
	name := req.Namespace.Title + "\x00" + req.Key
	if err := f.check(name, req.Cond); err != nil {
		return WriteResult{}, err
	}
	f.revision++
	f.keys[name] = stored{value, req.Metadata, f.revision, req.Expiry}
	return WriteResult{testEpoch, f.revision, f.revision, req.Expiry}, nil
}

func (f *fakeService) Delete(_ context.Context, req DeleteRequest) (WriteResult, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return WriteResult{}, err
	}
	name := req.Namespace.Title + "\x00" + req.Key
	if err := f.check(name, req.Cond); err != nil {
		return WriteResult{}, err
	}
	res := WriteResult{Epoch: testEpoch, AsOf: f.revision}
	if _, ok := f.keys[name]; ok {
		delete(f.keys, name)
		f.revision++
		res.Revision, res.AsOf = f.revision, f.revision
	}
	return res, nil
}

func (f *fakeService) check(name string, cond Cond) error {
	s, ok := f.keys[name]
	tag, _ := hex.DecodeString(testEpoch.Tag())
	met := map[CondKind]bool{
		CondNone: true, CondAbsent: !ok, CondPresent: ok,
		CondETag: ok && s.revision == cond.Revision && bytes.Equal(tag, cond.EpochTag[:]),
	}[cond.Kind]
	if !met {
		return &kv.Error{Code: kv.CodeConditionFailed, Message: "no", Revision: s.revision}
	}
	return nil
}

func (f *fakeService) List(_ context.Context, req ListRequest) (*ListPage, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	f.lists = append(f.lists, req)
	page := &ListPage{Complete: true, Epoch: testEpoch, AsOf: f.revision}
	for _, full := range slices.Sorted(maps.Keys(f.keys)) {
		name, ok := strings.CutPrefix(full, req.Namespace.Title+"\x00")
		if !ok || !strings.HasPrefix(name, req.Prefix) || name <= req.Cursor {
			continue
		}
		if len(page.Keys) == req.Limit {
			page.Complete, page.Cursor = false, page.Keys[len(page.Keys)-1].Name
			break
		}
		s := f.keys[full]
		k := ListKey{Name: name, Revision: s.revision, Expiry: s.expiry, Metadata: s.metadata, Size: int64(len(s.value))}
		if k.HasValue = req.Values; k.HasValue {
			k.Value = append([]byte(nil), s.value...) // nil when it is empty
		}
		page.Keys = append(page.Keys, k)
	}
	if req.Delimiter != "" {
		page.Prefixes = []string{"group" + req.Delimiter}
	}
	return page, nil
}

func (f *fakeService) MeshTime() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fakeService) Cluster(context.Context) (*ClusterStatus, error) {
	defer f.mu.Unlock()
	if err := f.enter(); err != nil {
		return nil, err
	}
	return &ClusterStatus{Cluster: "c", Leader: "n1", MeshTime: testNow.UTC()}, nil
}

// rig is a surface over a fake.
type rig struct {
	t   *testing.T
	svc *fakeService
	h   http.Handler
	log *bytes.Buffer
}

func newRig(t *testing.T, change ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, svc: newFake(), log: new(bytes.Buffer)}
	o := Options{Service: r.svc, Admin: &fakeAdmin{}, Logger: slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&o)
	}
	r.h = New(o)
	return r
}

// do sends one request. headers are name, value, name, value …
func (r *rig) do(method, target, body string, headers ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, req)
	return w
}

// want checks a status and, of an error, code and field.
func (r *rig) want(w *httptest.ResponseRecorder, status int, code kv.Code, field string) {
	r.t.Helper()
	if w.Code != status {
		r.t.Errorf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	if code == "" {
		return
	}
	e := readError(r.t, w.Body.Bytes())
	if e.Code != code || e.Field != field || e.Message == "" {
		r.t.Errorf("error %+v, want code %s and field %q", e, code, field)
	}
}

// serve puts the surface behind a real server and returns its address.
func (r *rig) serve() string {
	r.t.Helper()
	return serveHandler(r.t, r.h, ServerOptions{})
}
