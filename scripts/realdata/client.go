package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// requestTimeout bounds one request; the slowest one is 25 MiB through three hops on a busy machine.
	requestTimeout = 60 * time.Second
	// attempts bounds how often a request is sent that is answered 503: a mesh whose leader has just changed may say so
	// for a second. Every repetition is counted and printed.
	attempts = 8
	// workers is how many requests are under way at once.
	workers = 16
)

// edge is one node that is asked.
type edge struct {
	name string // its region
	url  string // http://host:port
}

// client speaks the native HTTP API to any edge, within one namespace. It is safe for concurrent use.
type client struct {
	http      *http.Client
	namespace string
	tally     tally
}

// newClient returns a client over rt.
func newClient(rt http.RoundTripper, namespace string) *client {
	return &client{http: &http.Client{Transport: rt}, namespace: namespace}
}

// reading is one value as an edge gave it.
type reading struct {
	sum  [sha256.Size]byte
	size int64
	tier string // Kv-Cache
}

// statusError is an answer that was not 2xx.
type statusError struct {
	status int
	body   string
}

func (e *statusError) Error() string { return fmt.Sprintf("status %d: %s", e.status, e.body) }

// get reads key at e and hashes the body as it comes. cacheTTL is in seconds; a negative one is not sent.
func (c *client) get(ctx context.Context, e edge, key string, cacheTTL int) (reading, error) {
	u := c.keyURL(e, key)
	if cacheTTL >= 0 {
		u += "?cache_ttl=" + strconv.Itoa(cacheTTL)
	}
	var r reading
	err := c.do(ctx, http.MethodGet, u, nil, func(resp *http.Response) error {
		h := sha256.New()
		n, err := io.Copy(h, resp.Body)
		if err != nil {
			return fmt.Errorf("after %d bytes of the body: %w", n, err)
		}
		r = reading{sum: [sha256.Size]byte(h.Sum(nil)), size: n, tier: resp.Header.Get("Kv-Cache")}
		if r.tier == "" {
			return errors.New("the answer has no Kv-Cache header")
		}
		return nil
	})
	if err == nil {
		c.tally.add(e.name, r.tier)
	}
	return r, err
}

// put writes key through e.
func (c *client) put(ctx context.Context, e edge, key string, value []byte) error {
	return c.do(ctx, http.MethodPut, c.keyURL(e, key), value, func(*http.Response) error { return nil })
}

// list returns every key that e lists, in its order.
func (c *client) list(ctx context.Context, e edge) ([]string, error) {
	var keys []string
	cursor := ""
	for {
		q := url.Values{"limit": {"1000"}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		var page struct {
			Keys []struct {
				Name string `json:"name"`
			} `json:"keys"`
			Complete bool   `json:"list_complete"`
			Cursor   string `json:"cursor"`
		}
		u := e.url + "/v1/kv/" + url.PathEscape(c.namespace) + "?" + q.Encode()
		err := c.do(ctx, http.MethodGet, u, nil, func(resp *http.Response) error {
			return json.NewDecoder(resp.Body).Decode(&page)
		})
		switch {
		case err != nil:
			return keys, fmt.Errorf("list after %d keys: %w", len(keys), err)
		case !page.Complete && (page.Cursor == "" || len(page.Keys) == 0):
			return keys, fmt.Errorf("list after %d keys: a page that is not the last has %d keys and the cursor %q",
				len(keys), len(page.Keys), page.Cursor)
		}
		for _, k := range page.Keys {
			keys = append(keys, k.Name)
		}
		if page.Complete {
			return keys, nil
		}
		cursor = page.Cursor
	}
}

// do sends one request until it is not answered 503, at most attempts times, and gives a 2xx answer to take.
func (c *client) do(ctx context.Context, method, u string, body []byte, take func(*http.Response) error) error {
	for attempt := 1; ; attempt++ {
		wait, err := c.once(ctx, method, u, body, take)
		var status *statusError
		if !errors.As(err, &status) || status.status != http.StatusServiceUnavailable || attempt == attempts {
			return err
		}
		c.tally.retried()
		if !pause(ctx, wait) {
			return err
		}
	}
}

// once sends one request. Its first result is how long to wait before the next attempt.
func (c *client) once(ctx context.Context, method, u string, body []byte, take func(*http.Response) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err != nil {
			return 0, fmt.Errorf("status %d, then: %w", resp.StatusCode, err)
		}
		wait := 200 * time.Millisecond
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
			wait = time.Duration(min(s, 2)) * time.Second
		}
		return wait, &statusError{resp.StatusCode, strings.TrimSpace(string(text))}
	}
	return 0, take(resp)
}

// keyURL is the address of one key: every part between slashes is escaped, the slashes are part of the key.
func (c *client) keyURL(e edge, key string) string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return e.url + "/v1/kv/" + url.PathEscape(c.namespace) + "/" + strings.Join(parts, "/")
}

// pause waits for d. It reports false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tally counts answers by edge and tier, and repeated requests. The zero tally is ready.
type tally struct {
	mu      sync.Mutex                // guards the fields below
	tiers   map[string]map[string]int // edge → tier → answers since the last take
	all     map[string]int            // tier → answers from the beginning
	retries int                       // since the last take
}

func (t *tally) add(edge, tier string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[string]int{}
	}
	t.all[tier]++
	if t.tiers == nil {
		t.tiers = map[string]map[string]int{}
	}
	if t.tiers[edge] == nil {
		t.tiers[edge] = map[string]int{}
	}
	t.tiers[edge][tier]++
}

func (t *tally) retried() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.retries++
}

// take returns what was counted since the last take, one line an edge, and starts again.
func (t *tally) take() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for _, name := range sortedKeys(t.tiers) {
		lines = append(lines, fmt.Sprintf("Kv-Cache at %-9s", name)+counts(t.tiers[name]))
	}
	if t.retries > 0 {
		lines = append(lines, fmt.Sprintf("503, sent again: %d", t.retries))
	}
	t.tiers, t.retries = nil, 0
	return lines
}

// total is what was counted from the beginning.
func (t *tally) total() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return counts(t.all)
}

func counts(tiers map[string]int) string {
	text := ""
	for _, tier := range sortedKeys(tiers) {
		text += fmt.Sprintf("  %s %d", tier, tiers[tier])
	}
	return text
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
