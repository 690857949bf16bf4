package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// fakeMesh answers as a mesh of two edges and a writer would, in memory, and can be told to err. It is an
// http.RoundTripper, so that it works in virtual time.
type fakeMesh struct {
	lag      map[string]time.Duration // host → how long after a write it still gives the old value
	breakGet func(host, key string, value []byte) []byte
	breakKey func(key string) string // in listings; "" leaves it out
	status   func(host, key string) int
	tier     func(host, key string, reads int) string
	maxBytes int
	tooLarge string // the message of a 413

	mu     sync.Mutex // guards the fields below
	values map[string][]version
	reads  map[string]int
}

type version struct {
	value []byte
	at    time.Time
}

func (f *fakeMesh) RoundTrip(req *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	f.serve(rec, req)
	return rec.Result(), nil
}

func (f *fakeMesh) serve(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), "/v1/kv/"+namespace)
	if !ok {
		http.Error(w, "wrong namespace", http.StatusNotFound)
		return
	}
	escaped, isKey := strings.CutPrefix(path, "/")
	key, err := url.PathUnescape(escaped)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case !isKey:
		f.list(w, r)
	case r.Method == http.MethodPut:
		f.put(w, r, key)
	default:
		f.get(w, r.URL.Host, key)
	}
}

func (f *fakeMesh) put(w http.ResponseWriter, r *http.Request, key string) {
	value, err := io.ReadAll(r.Body)
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	case f.maxBytes > 0 && len(value) > f.maxBytes:
		http.Error(w, f.tooLarge, http.StatusRequestEntityTooLarge)
	default:
		f.set(key, value)
	}
}

func (f *fakeMesh) set(key string, value []byte) {
	if f.values == nil {
		f.values, f.reads = map[string][]version{}, map[string]int{}
	}
	f.values[key] = append(f.values[key], version{value, time.Now()})
}

func (f *fakeMesh) get(w http.ResponseWriter, host, key string) {
	if f.status != nil {
		if s := f.status(host, key); s != 0 {
			w.WriteHeader(s)
			return
		}
	}
	versions := f.values[key]
	if len(versions) == 0 {
		http.NotFound(w, nil)
		return
	}
	v := versions[len(versions)-1]
	if len(versions) > 1 && time.Since(v.at) < f.lag[host] {
		v = versions[len(versions)-2]
	}
	f.reads[host+"/"+key]++
	tier := "hit"
	if f.tier != nil {
		tier = f.tier(host, key, f.reads[host+"/"+key])
	}
	if f.breakGet != nil {
		v.value = f.breakGet(host, key, v.value)
	}
	w.Header().Set("Kv-Cache", tier)
	w.Write(v.value) // a recorder cannot fail
}

func (f *fakeMesh) list(w http.ResponseWriter, r *http.Request) {
	const perPage = 3 // whatever limit is asked for: fewer is allowed
	type name struct {
		Name string `json:"name"`
	}
	page := struct {
		Keys     []name `json:"keys"`
		Complete bool   `json:"list_complete"`
		Cursor   string `json:"cursor"`
	}{Complete: true}
	after := r.URL.Query().Get("cursor")
	for _, k := range slices.Sorted(func(yield func(string) bool) {
		for k := range f.values {
			if k > after && !yield(k) {
				return
			}
		}
	}) {
		if len(page.Keys) == perPage {
			page.Complete = false
			break
		}
		page.Cursor = k
		if f.breakKey != nil {
			k = f.breakKey(k)
		}
		if k != "" {
			page.Keys = append(page.Keys, name{k})
		}
	}
	json.NewEncoder(w).Encode(page) // a recorder cannot fail
}
