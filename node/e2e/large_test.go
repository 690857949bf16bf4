package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"kvmesh/node/nodetest"
	"kvmesh/raftstore/kv"
)

// largeContent is n bytes that only the seed decides, made while they are read.
func largeContent(seed byte, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

// putLarge streams a value of the largest size to a node.
func putLarge(ctx context.Context, n *nodetest.Proc, target string, seed byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, n.Base+target, largeContent(seed, kv.MaxValueBytes))
	if err != nil {
		return err
	}
	req.ContentLength = kv.MaxValueBytes
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: PUT %s: status %d, %s", n.Name, target, resp.StatusCode, text)
	}
	return err
}

// seesLarge reads what putLarge has written, and compares it byte by byte.
func seesLarge(ctx context.Context, n *nodetest.Proc, target string, seed byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.Base+target, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or failed
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return fmt.Errorf("%s: GET %s: status %d, %s %w", n.Name, target, resp.StatusCode, text, err)
	}
	want := largeContent(seed, kv.MaxValueBytes)
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		got, err := io.ReadFull(resp.Body, a)
		_, _ = io.ReadFull(want, b[:got]) // as much as there is
		if string(a[:got]) != string(b[:got]) {
			return fmt.Errorf("%s: GET %s: other bytes near %d", n.Name, target, at)
		}
		at += int64(got)
		if at == kv.MaxValueBytes {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: GET %s: %d bytes, then: %w", n.Name, target, at, err)
		}
	}
}

// peaks watches the memory of processes until it is told to stop.
type peaks struct {
	most []atomic.Int64
	stop context.CancelFunc
	done sync.WaitGroup
}

func watchMemory(t *testing.T, nodes []*nodetest.Proc) *peaks {
	ctx, cancel := context.WithCancel(t.Context())
	p := &peaks{most: make([]atomic.Int64, len(nodes)), stop: cancel}
	for i, n := range nodes {
		p.done.Go(func() {
			for ctx.Err() == nil {
				rss, err := n.RssAnon()
				if err != nil {
					t.Error(err)
					return
				}
				p.most[i].Store(max(p.most[i].Load(), rss))
				select {
				case <-time.After(nodetest.Pause):
				case <-ctx.Done():
				}
			}
		})
	}
	return p
}

func (p *peaks) end() {
	p.stop()
	p.done.Wait()
}

// TestLargeAtOnce writes and reads eight values of 25 MiB at once, through voters and through an edge: no process takes
// 300 MiB for it.
func TestLargeAtOnce(t *testing.T) {
	bench(t)
	const at, limit = 8, 300 << 20
	p := nodetest.NewProcs(t, program(t))
	voters, edges := layout(t, p, 3, 1)
	startAll(t, p.All)
	lead, rest := leader(t, voters)
	term := func(n *nodetest.Proc) float64 {
		v, err := n.Metric(t.Context(), "kvmesh_raft_term")
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := term(lead)
	ctx, cancel := context.WithTimeout(t.Context(), 4*nodetest.Patience)
	defer cancel()
	rounds := map[string][]*nodetest.Proc{"everywhere": p.All}
	if !nodetest.Race { // which is ten times slower
		rounds["at the leader"], rounds["at a follower"], rounds["at the edge"] = []*nodetest.Proc{lead}, []*nodetest.Proc{rest[0]}, edges
	}
	for round, via := range rounds {
		target := func(i int) string { return fmt.Sprintf("/v1/kv/default/large-%s-%d", via[0].Name, i) }
		for _, step := range []struct {
			what string
			do   func(i int) error
		}{
			{"PUTs", func(i int) error { return putLarge(ctx, via[i%len(via)], target(i), byte(i)) }},
			{"GETs", func(i int) error {
				return seesLarge(ctx, via[(i+1)%len(via)], target(i)+"?consistency=strong", byte(i))
			}},
		} {
			watch := watchMemory(t, p.All)
			var wg sync.WaitGroup
			for i := range at {
				wg.Go(func() {
					if err := step.do(i); err != nil {
						t.Errorf("%s %s: %v", step.what, round, err)
					}
				})
			}
			wg.Wait()
			watch.end()
			for i, n := range p.All {
				most := watch.most[i].Load()
				t.Logf("%d %s of 25 MiB %s: %s had %d MiB", at, step.what, round, n.Name, most>>20)
				if most > limit && !nodetest.Race { // the race detector's own memory is ten times the program's
					t.Errorf("%d %s of 25 MiB %s: %s took %d MiB", at, step.what, round, n.Name, most>>20)
				}
			}
		}
	}
	// That nobody elects meanwhile is for scripts/bench/large.sh to judge, on a machine that does nothing else.
	t.Logf("the term was %v and is %v", before, term(lead))
	for _, v := range voters {
		nodetest.Eventually(t, nodetest.Patience, "no value missing", func() error {
			n, err := v.Metric(t.Context(), "kvmesh_blobs_missing")
			if err == nil && n != 0 {
				err = fmt.Errorf("%s: %v", v.Name, n)
			}
			return err
		})
	}
}
