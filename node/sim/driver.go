package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/raftstore/kv"
)

const (
	numKeys    = 10
	numClients = 6
	// opTimeout bounds one client operation.
	opTimeout = 8 * time.Second
)

func keyName(i int) string { return fmt.Sprintf("key-%02d", i) }

// run drives the mesh for d of virtual time, then heals it and checks that everything converges.
func (w *world) run(ctx context.Context, d time.Duration) error {
	for _, m := range w.machines {
		if err := w.start(m); err != nil {
			return err
		}
	}
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	err := w.ready(ready)
	cancel()
	if err != nil {
		return err
	}
	ns, err := w.machines[0].running().Service().Namespace(ctx, "default")
	if err != nil {
		return err
	}
	clientCtx, stopClients := context.WithCancel(ctx)
	for i := range numClients {
		c := &client{w: w, ns: ns, id: i, rng: rand.New(rand.NewPCG(w.seed, uint64(i)+1))}
		w.clients.Go(func() { c.run(clientCtx) })
	}
	w.faults(ctx, time.Now().Add(d))
	stopClients()
	w.clients.Wait()
	return w.converge(ctx, ns)
}

// client is one user, who moves between nodes and carries a bookmark along.
type client struct {
	w    *world
	ns   kv.Namespace
	id   int
	rng  *rand.Rand
	seq  int
	mark kv.Bookmark
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-time.After(time.Duration(20+c.rng.IntN(300)) * time.Millisecond):
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
		c.wrote(m, key, "", res, err)
		return
	}
	c.seq++
	value := fmt.Sprintf("%d.%d", c.id, c.seq)
	if c.rng.IntN(40) == 0 { // a large one
		value += strings.Repeat("-", kv.MaxInlineValueBytes+c.rng.IntN(1000))
	}
	c.w.history.sending(key, value)
	res, err := n.Service().Put(ctx, api.PutRequest{Namespace: c.ns, Key: key, Body: strings.NewReader(value), Size: int64(len(value))})
	c.wrote(m, key, value, res, err)
}

func (c *client) wrote(m *machine, key, value string, res api.WriteResult, err error) {
	c.w.history.wrote(m.name, key, value, res, err)
	c.w.branches.write(err)
	if err == nil {
		c.see(kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf})
	}
}

func (c *client) see(b kv.Bookmark) {
	if less(c.mark, b) {
		c.mark = b
	}
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
		k.Bookmark = c.mark
	}
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
	c.w.history.read(m.name, key, start, k, v, value)
	c.see(kv.Bookmark{Epoch: v.Epoch, Revision: v.AsOf})
}

// list reads a page at the client's bookmark and checks nothing but that.
func (c *client) list(ctx context.Context, n *node.Node) {
	page, err := n.Service().List(ctx, api.ListRequest{
		Namespace: c.ns, Limit: kv.MaxListLimit, Consistency: api.Consistency{Bookmark: c.mark},
	})
	if err != nil {
		return
	}
	if page.Epoch == c.mark.Epoch && page.AsOf < c.mark.Revision {
		c.w.history.note(fmt.Sprintf("bookmark: a listing as of %d, asked for %d", page.AsOf, c.mark.Revision))
	}
	c.see(kv.Bookmark{Epoch: page.Epoch, Revision: page.AsOf})
}

// faults breaks things until end, one after the other, some at the same time.
func (w *world) faults(ctx context.Context, end time.Time) {
	for time.Now().Before(end) && ctx.Err() == nil {
		time.Sleep(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
		hold := time.Duration(200+w.rng.IntN(6000)) * time.Millisecond
		m := w.machines[w.rng.IntN(len(w.machines))]
		o := w.machines[w.rng.IntN(len(w.machines))]
		switch w.rng.IntN(11) {
		case 0, 1: // one machine crashes and comes back
			w.log.Info("fault: crash", "node", m.name, "for", hold)
			w.crash(m)
			time.Sleep(hold)
			w.reboot(m)
		case 2: // the leader crashes
			if l := w.leader(); l != nil {
				w.log.Info("fault: leader crash", "node", l.name)
				w.crash(l)
				time.Sleep(hold)
				w.reboot(l)
			}
		case 3: // one direction of a link is cut
			w.log.Info("fault: one-way cut", "from", m.name, "to", o.name, "for", hold)
			w.net.Cut(m.ip, o.ip, true)
			time.Sleep(hold)
			w.net.Cut(m.ip, o.ip, false)
		case 4: // a machine is cut off, now and then for longer than the change index reaches back
			if w.rng.IntN(3) == 0 {
				hold += 25 * time.Second
			}
			w.log.Info("fault: isolated", "node", m.name, "for", hold)
			w.isolate(m, true)
			time.Sleep(hold)
			w.isolate(m, false)
		case 5: // a region is cut off
			w.log.Info("fault: region cut off", "region", m.region, "for", hold)
			w.cutRegion(m.region, true)
			time.Sleep(hold)
			w.cutRegion(m.region, false)
		case 6: // all voters are out of reach of the edges
			w.log.Info("fault: voters out of reach", "for", hold)
			w.cutVoters(true)
			time.Sleep(hold)
			w.cutVoters(false)
		case 7: // a wall clock jumps
			d := time.Duration(w.rng.IntN(7200)-3600) * time.Second
			w.log.Info("fault: wall clock", "node", m.name, "by", d)
			m.clock.setWall(d)
		case 8: // a machine sleeps
			w.log.Info("fault: sleep", "node", m.name, "for", hold)
			w.isolate(m, true)
			time.Sleep(hold)
			m.clock.sleep(hold)
			w.isolate(m, false)
		case 10: // a new epoch begins
			w.log.Info("fault: new epoch")
			if n := m.running(); n != nil {
				op, cancel := context.WithTimeout(ctx, opTimeout)
				if err := n.NewEpoch(op); err != nil {
					w.log.Info("no new epoch", "error", err)
				}
				cancel()
			}
		case 9: // two voters at once: no quorum
			var down []*machine
			for _, v := range w.machines {
				if v.role == certs.RoleVoter && len(down) < 2 {
					down = append(down, v)
				}
			}
			w.log.Info("fault: no quorum", "for", hold)
			for _, v := range down {
				w.crash(v)
			}
			time.Sleep(hold)
			for _, v := range down {
				w.reboot(v)
			}
		}
	}
}

func (w *world) reboot(m *machine) {
	if err := w.start(m); err != nil {
		w.fatal(err)
	}
}

func (w *world) leader() *machine {
	for _, m := range w.machines {
		if n := m.running(); n != nil && n.Leads() {
			return m
		}
	}
	return nil
}

func (w *world) isolate(m *machine, cut bool) {
	for _, o := range w.machines {
		if o != m {
			w.net.Cut(m.ip, o.ip, cut)
			w.net.Cut(o.ip, m.ip, cut)
		}
	}
}

func (w *world) cutRegion(region string, cut bool) {
	for _, a := range w.machines {
		for _, b := range w.machines {
			if a.region == region && b.region != region {
				w.net.Cut(a.ip, b.ip, cut)
				w.net.Cut(b.ip, a.ip, cut)
			}
		}
	}
}

func (w *world) cutVoters(cut bool) {
	for _, a := range w.machines {
		for _, b := range w.machines {
			if a.role == certs.RoleVoter && b.role != certs.RoleVoter {
				w.net.Cut(a.ip, b.ip, cut)
				w.net.Cut(b.ip, a.ip, cut)
			}
		}
	}
}

// converge heals everything and waits until every node serves the newest state of every key from its own memory.
func (w *world) converge(ctx context.Context, ns kv.Namespace) error {
	w.net.Heal()
	for _, m := range w.machines {
		m.clock.setWall(0)
		if m.running() == nil {
			w.reboot(m)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := w.ready(ctx); err != nil {
		return fmt.Errorf("converge: %w", err)
	}
	// One last write of every key, so that nothing of unknown outcome is the newest.
	n := w.machines[0].running()
	for i := range numKeys {
		value := fmt.Sprintf("last.%d", i)
		w.history.sending(keyName(i), value)
		for {
			res, err := n.Service().Put(ctx, api.PutRequest{Namespace: ns, Key: keyName(i), Body: strings.NewReader(value), Size: int64(len(value))})
			w.history.wrote(w.machines[0].name, keyName(i), value, res, err)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("converge: no write goes through: %w", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for _, m := range w.machines {
		for i := range numKeys {
			if err := w.settled(ctx, m, ns, keyName(i), fmt.Sprintf("last.%d", i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// settled waits until a node serves the last value of a key as a hit.
func (w *world) settled(ctx context.Context, m *machine, ns kv.Namespace, key, want string) error {
	var tier api.Tier
	var value string
	for range 600 {
		start := time.Now()
		v, got, err := get(ctx, m.running(), ns, key, time.Hour, api.Consistency{})
		if err == nil {
			w.history.read(m.name, key, start, api.Consistency{}, v, got)
			if tier, value = v.Tier, got; tier == api.TierHit && value == want {
				return nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("converge: %s serves %q by %s for %s, a minute after everything was healed; want %q as a hit", m.name, value, tier, key, want)
}
