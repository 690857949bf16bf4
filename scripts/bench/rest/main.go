// Command rest measures the Cloudflare REST API of a kvmesh: what a bulk put saves over single PUTs, and whether the size of
// a namespace shows in a page of its listing. It starts a mesh of three voters and an edge in one process of the real
// binary, and asks the edge. scripts/bench/rest.sh builds and runs it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	bulkItems  = 10_000 // as many as one call takes
	valueBytes = 1024
	writers    = 64 // of single PUTs
	pageKeys   = 1000
	readyIn    = 2 * time.Minute
	maxTries   = 100
	retryPause = 100 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "rest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	binary := flag.String("kvmesh", "", "the kvmesh binary")
	dir := flag.String("dir", "", "an existing directory for the data, on the disk to be measured")
	port := flag.Int("port", 19580, "HTTP port of the first node; every further one is 100 higher")
	rounds := flag.Int("rounds", 3, "rounds of bulk and single puts; they take turns, medians are shown")
	keys := flag.Int("keys", 1_000_000, "keys of the large namespace whose listing is measured; 0 = not measured")
	pages := flag.Int("pages", 200, "pages of each listing that are measured")
	flag.Parse()
	if *binary == "" || *dir == "" || *rounds < 1 || *pages < 1 {
		return errors.New("-kvmesh, -dir, and at least one round and one page are needed")
	}
	cmd := exec.CommandContext(ctx, *binary, "dev", "--json", "--voters", "3", "--regions", "one", "--http-port", fmt.Sprint(*port), "--data-dir", *dir)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended already, which Wait tells
		err = errors.Join(err, cmd.Wait())
	}()
	c, err := ready(out)
	if err != nil {
		return err
	}
	defer func() {
		fmt.Printf("%d requests were sent again after a 503, or because some keys had been left out\n", c.retries.Load())
	}()
	if err := c.puts(ctx, *rounds); err != nil || *keys == 0 {
		return err
	}
	return c.listings(ctx, *keys, *pages)
}

// client asks the edge.
type client struct {
	base    string // of the namespaces
	http    http.Client
	retries atomic.Int64
}

// ready waits for the line that says where the nodes are.
func ready(out io.Reader) (*client, error) {
	lines := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n') // an empty one is no JSON
		lines <- line
	}()
	var line string
	select {
	case line = <-lines:
	case <-time.After(readyIn):
		return nil, errors.New("the mesh does not become ready")
	}
	var mesh struct{ Nodes []struct{ HTTP string } }
	if err := json.Unmarshal([]byte(line), &mesh); err != nil || len(mesh.Nodes) == 0 {
		return nil, fmt.Errorf("the mesh did not start: %q", line)
	}
	c := &client{base: mesh.Nodes[0].HTTP + "/client/v4/accounts/bench/storage/kv/namespaces"}
	c.http.Transport = &http.Transport{MaxIdleConnsPerHost: writers, DisableCompression: true}
	return c, nil
}

// ask sends a request, again where a mesh on a busy machine has just lost its leader, and decodes the envelope. All of the
// requests may be sent twice.
func (c *client) ask(ctx context.Context, method, path string, body []byte, result any) error {
	for try := 1; ; try++ {
		status, err := c.askOnce(ctx, method, path, body, result)
		if status != http.StatusServiceUnavailable || try == maxTries {
			return err
		}
		c.retries.Add(1)
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (c *client) askOnce(ctx context.Context, method, path string, body []byte, result any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }() // it is read to its end
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, fmt.Errorf("%s %.80s: %s: %.300s", method, path, resp.Status, text)
	}
	if result == nil {
		return resp.StatusCode, nil
	}
	return resp.StatusCode, json.Unmarshal(text, result)
}

func (c *client) namespace(ctx context.Context, title string) (string, error) {
	var out struct{ Result struct{ ID string } }
	_, err := c.askOnce(ctx, http.MethodPost, "", fmt.Appendf(nil, "{\"title\":%q}", title), &out)
	return "/" + out.Result.ID, err
}

func name(i int) string { return fmt.Sprintf("key-%07d", i) }

// bulk puts n keys from first on in one call.
func (c *client) bulk(ctx context.Context, ns string, first, n int, value string) error {
	type item struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	items := make([]item, n)
	for i := range items {
		items[i] = item{name(first + i), value}
	}
	body, err := json.Marshal(items)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		var out struct {
			Result struct {
				N int `json:"successful_key_count"`
			}
		}
		if err := c.ask(ctx, http.MethodPut, ns+"/bulk", body, &out); err != nil {
			return err
		}
		if out.Result.N == n {
			return nil
		}
		if try == maxTries {
			return fmt.Errorf("a bulk put of %d keys wrote %d", n, out.Result.N)
		}
		c.retries.Add(1) // the leader changed within it, and the answer names the keys
	}
}

// singles puts the keys of one bulk call one by one.
func (c *client) singles(ctx context.Context, ns, value string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan int)
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for i := range queue {
				if err := c.ask(ctx, http.MethodPut, ns+"/values/"+name(i), []byte(value), nil); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range bulkItems {
		queue <- i
	}
	close(queue)
	all.Wait()
	return context.Cause(ctx)
}

// page reads one page of a listing.
func (c *client) page(ctx context.Context, ns, cursor string) (n int, next string, err error) {
	var out struct {
		Result []struct{ Name string }
		Info   struct{ Cursor string } `json:"result_info"`
	}
	err = c.ask(ctx, http.MethodGet, ns+"/keys?cursor="+url.QueryEscape(cursor), nil, &out)
	return len(out.Result), out.Info.Cursor, err
}

// count walks a listing and says how many keys there are.
func (c *client) count(ctx context.Context, ns string) (total int, err error) {
	for cursor := ""; ; {
		n, next, err := c.page(ctx, ns, cursor)
		if total += n; err != nil || next == "" {
			return total, err
		}
		cursor = next
	}
}

// puts compares bulk and single puts of the same keys, each into a namespace of its own.
func (c *client) puts(ctx context.Context, rounds int) error {
	value := strings.Repeat("0123456789abcdef", valueBytes/16)
	took := map[string][]time.Duration{}
	for round := range rounds {
		for _, kind := range []string{"single", "bulk"} {
			ns, err := c.namespace(ctx, fmt.Sprintf("%s-%d", kind, round))
			if err != nil {
				return err
			}
			began := time.Now()
			if kind == "bulk" {
				err = c.bulk(ctx, ns, 0, bulkItems, value)
			} else {
				err = c.singles(ctx, ns, value)
			}
			d := time.Since(began)
			if err != nil {
				return err
			}
			if n, err := c.count(ctx, ns); err != nil || n != bulkItems {
				return fmt.Errorf("after %d %s puts the listing has %d keys: %w", bulkItems, kind, n, err)
			}
			took[kind] = append(took[kind], d)
			fmt.Printf("%-7s %d x %d B in %7.2f s  %8.0f/s\n", kind, bulkItems, valueBytes, d.Seconds(), bulkItems/d.Seconds())
		}
	}
	fmt.Printf("a bulk put is %.1f x as fast as %d single writers (aim: 3 x)\n",
		median(took["single"]).Seconds()/median(took["bulk"]).Seconds(), writers)
	return nil
}

// listings compares a page of a large namespace with one of a small one.
func (c *client) listings(ctx context.Context, keys, pages int) error {
	sizes := []int{bulkItems, keys}
	spaces := make([]string, len(sizes))
	cursors := make([]string, len(sizes))
	for i, size := range sizes {
		var err error
		if spaces[i], err = c.namespace(ctx, fmt.Sprint("keys-", size)); err != nil {
			return err
		}
		for first := 0; first < size; first += bulkItems {
			if err := c.bulk(ctx, spaces[i], first, min(bulkItems, size-first), "v"); err != nil {
				return err
			}
		}
	}
	took := make([][]time.Duration, len(sizes))
	for range pages {
		for i := range sizes {
			began := time.Now()
			n, next, err := c.page(ctx, spaces[i], cursors[i])
			d := time.Since(began)
			if err != nil || n != min(pageKeys, sizes[i]) {
				return fmt.Errorf("a page of the namespace of %d keys has %d: %w", sizes[i], n, err)
			}
			took[i], cursors[i] = append(took[i], d), next // from the beginning again after the last one
		}
	}
	for i, size := range sizes {
		fmt.Printf("a page of %d out of %8d keys: %7.2f ms\n", pageKeys, size, float64(median(took[i]))/float64(time.Millisecond))
	}
	fmt.Printf("the large namespace's pages take %.2f x as long (aim: 1.2 x at most)\n",
		float64(median(took[1]))/float64(median(took[0])))
	return nil
}

func median(d []time.Duration) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[len(d)/2]
}
