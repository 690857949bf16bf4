package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// client is one user, who moves between nodes and carries a bookmark along.
type client struct {
	w   *world
	ns  kv.Namespace
	id  int
	rng *rand.Rand
	seq int

	mu   sync.Mutex // guards mark
	mark kv.Bookmark
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-time.After(untilFull(time.Duration(20+c.rng.IntN(300)) * time.Millisecond)):
		case <-ctx.Done():
			return
		}
		m := c.w.machines[c.rng.IntN(len(c.w.machines))]
		n := m.running()
		if n == nil {
			continue
		}
		key := keyName(c.rng.IntN(numKeys))
		if c.rng.IntN(10) < 4 { // a burst on one hot key
			key = keyName(0)
		}
		op, cancel := context.WithTimeout(ctx, opTimeout)
		switch p := c.rng.IntN(100); {
		case p < 2:
			c.transact(op, m, n, key)
		case p < 4:
			c.bulk(op, m, n, key)
		case p < 22:
			c.write(op, m, n, key, c.rng.IntN(6) == 0)
		case p < 25:
			c.list(op, n)
		case p < 30:
			c.chase(op, m, n)
		default:
			c.read(op, m, n, key)
		}
		cancel()
	}
}

func (c *client) write(ctx context.Context, m *machine, n *node.Node, key string, del bool) {
	if del {
		c.w.history.sending(key, "")
		res, err := n.Service().Delete(ctx, api.DeleteRequest{Namespace: c.ns, Key: key})
		c.wrote(ctx, m, n, key, "", res, err)
		return
	}
	value := c.next()
	if c.rng.IntN(40) == 0 { // a large one
		value += strings.Repeat("-", kv.MaxInlineValueBytes+c.rng.IntN(1000))
	}
	c.put(ctx, m, n, key, value)
}

// next is a value that was never written before.
func (c *client) next() string {
	c.seq++
	return fmt.Sprintf("%d.%d", c.id, c.seq)
}

func (c *client) put(ctx context.Context, m *machine, n *node.Node, key, value string) {
	c.w.history.sending(key, value)
	res, err := n.Service().Put(ctx, api.PutRequest{Namespace: c.ns, Key: key, Body: strings.NewReader(value), Size: int64(len(value))})
	c.wrote(ctx, m, n, key, value, res, err)
}

// chase has the hot key written somewhere else and reads it here all the while, so that reads meet the record, the hint and
// the fills at the very instant when they come.
func (c *client) chase(ctx context.Context, m *machine, n *node.Node) {
	const reads = 150
	other := c.w.machines[c.rng.IntN(len(c.w.machines))]
	value := c.next()
	var wrote sync.WaitGroup
	defer wrote.Wait()
	if at := other.running(); at != nil {
		wrote.Go(func() { c.put(ctx, other, at, keyName(0), value) })
	}
	for i := range reads {
		var k api.Consistency
		if i%8 == 0 {
			k.Bookmark = c.bookmark()
		}
		c.w.yield()
		c.ask(ctx, m, n, keyName(0), time.Minute, k)
		time.Sleep(untilFull(time.Millisecond))
	}
}

// watch reads the hot key at one machine for a while, all the time.
func (c *client) watch(ctx context.Context, m *machine, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end) && c.w.going(ctx); time.Sleep(untilFull(time.Millisecond)) {
		if n := m.running(); n != nil {
			op, cancel := context.WithTimeout(ctx, time.Second)
			c.w.yield()
			c.ask(op, m, n, keyName(0), time.Minute, api.Consistency{})
			cancel()
		}
	}
}

// yield lets nobody go first, or few, or so many that what comes next comes after what others do at the same instant.
func (w *world) yield() {
	if w.grained() {
		yield([]int{1, 30, 200, 800}[rand.IntN(4)])
	}
}

// untilFull is about d, to a full millisecond: then, in a grained network, much happens at once.
func untilFull(d time.Duration) time.Duration {
	return time.Until(time.Now().Truncate(time.Millisecond).Add(d))
}

func (c *client) wrote(ctx context.Context, m *machine, n *node.Node, key, value string, res api.WriteResult, err error) {
	c.w.history.wrote(m.name, key, value, res, err)
	c.w.branches.write(err)
	if kv.CodeOf(err) == kv.CodeInternal && ctx.Err() == nil && m.running() == n { // else it has crashed
		c.w.history.note("internal: write of " + key + " at " + m.name + ": " + err.Error())
	}
	if err == nil {
		c.see(kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf})
	}
}

func (c *client) see(b kv.Bookmark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if less(c.mark, b) {
		c.mark = b
	}
}

func (c *client) bookmark() kv.Bookmark {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mark
}

func (c *client) read(ctx context.Context, m *machine, n *node.Node, key string) {
	ttl := []time.Duration{0, time.Second, time.Minute, time.Hour}[c.rng.IntN(4)]
	var k api.Consistency
	switch c.rng.IntN(8) {
	case 0:
		k.Strong = true
	case 1:
		k.Bounded, k.MaxStaleness = true, []time.Duration{0, 100 * time.Millisecond, time.Second, 30 * time.Second}[c.rng.IntN(4)]
	case 2:
		k.Bookmark = c.bookmark()
	}
	c.ask(ctx, m, n, key, ttl, k)
}

// ask is one read; its answer is held against the history.
func (c *client) ask(ctx context.Context, m *machine, n *node.Node, key string, ttl time.Duration, k api.Consistency) {
	start := time.Now()
	v, value, err := get(ctx, n, c.ns, key, ttl, k)
	c.w.branches.read(v, k, err)
	if err != nil {
		if code := kv.CodeOf(err); code == kv.CodeInternal && ctx.Err() == nil {
			c.w.history.note("internal: read of " + key + " at " + m.name + ": " + err.Error())
		}
		return
	}
	if m.running() != n {
		return // it crashed meanwhile: no client has seen this answer
	}
	c.w.history.read(m.name, key, start, demand{k, ttl}, v, value)
	c.see(kv.Bookmark{Epoch: v.Epoch, Revision: v.AsOf})
}

// list reads a page at the client's bookmark and checks nothing but that.
func (c *client) list(ctx context.Context, n *node.Node) {
	mark := c.bookmark()
	page, err := n.Service().List(ctx, api.ListRequest{
		Namespace: c.ns, Limit: kv.MaxListLimit, Consistency: api.Consistency{Bookmark: mark},
	})
	if err != nil {
		return
	}
	if page.Epoch.Compare(mark.Epoch) < 0 || page.AsOf < mark.Revision {
		c.w.history.note(fmt.Sprintf("bookmark: a listing as of %s.%d, asked for %s", page.Epoch, page.AsOf, mark))
	}
	c.see(kv.Bookmark{Epoch: page.Epoch, Revision: page.AsOf})
}
