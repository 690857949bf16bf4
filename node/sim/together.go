package sim

import (
	"context"
	"strings"
	"time"

	"kvmesh/node"
	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// planned is one write of a bulk call or transaction; an empty value deletes.
type planned struct{ key, value string }

// plan chooses two to four keys, key among them, and what becomes of each.
func (c *client) plan(key string) []planned {
	keys := map[string]bool{key: true}
	for range 1 + c.rng.IntN(3) {
		keys[keyName(c.rng.IntN(numKeys))] = true
	}
	var out []planned
	for i := range numKeys { // in a fixed order, so that a seed can be replayed
		if !keys[keyName(i)] {
			continue
		}
		p := planned{key: keyName(i)}
		if c.rng.IntN(5) > 0 {
			p.value = c.next()
			if c.rng.IntN(40) == 0 {
				p.value += strings.Repeat("-", kv.MaxInlineValueBytes+c.rng.IntN(1000))
			}
		}
		out = append(out, p)
	}
	return out
}

// sendTogether stages what is planned. It fails before anything can have been written.
func (c *client) sendTogether(ctx context.Context, n *node.Node, plan []planned) ([]api.Write, error) {
	out := make([]api.Write, len(plan))
	for i, p := range plan {
		out[i] = api.Write{Namespace: c.ns, Key: p.key}
		if p.value == "" {
			continue
		}
		v, err := n.Service().Stage(ctx, api.StageRequest{Namespace: c.ns, Key: p.key, Body: strings.NewReader(p.value), Size: -1, Forget: c.rng.IntN(4) == 0})
		if err != nil {
			return nil, err
		}
		out[i].Value = v
	}
	for _, p := range plan {
		c.w.history.sending(p.key, p.value)
	}
	return out, nil
}

// transact writes several keys at once, sometimes on a condition that often does not hold.
func (c *client) transact(ctx context.Context, m *machine, n *node.Node, key string) {
	plan := c.plan(key)
	var compare []api.TxnCompare
	if c.rng.IntN(2) == 0 {
		kind := []api.CondKind{api.CondAbsent, api.CondPresent}[c.rng.IntN(2)]
		compare = append(compare, api.TxnCompare{Namespace: c.ns, Key: keyName(c.rng.IntN(numKeys)), Cond: api.Cond{Kind: kind}})
	}
	writes, err := c.sendTogether(ctx, n, plan)
	if err != nil {
		c.w.branches.write(err)
		return
	}
	res, err := n.Service().Txn(ctx, api.TxnRequest{Compare: compare, Writes: writes})
	switch {
	case err != nil:
		for _, p := range plan {
			c.wrote(ctx, m, n, p.key, p.value, api.WriteResult{}, err)
		}
	case len(res.Conflicts) > 0:
		c.w.branches.add("txn refused", 1)
		c.w.history.refused(plan)
		if m.running() == n { // else no client has seen it
			c.w.history.met(m.name, compare[0].Key, res)
		}
	default:
		c.w.branches.add("txn carried out", 1)
		for i, p := range plan {
			c.wrote(ctx, m, n, p.key, p.value, res.Writes[i], nil)
		}
	}
}

// bulk writes several keys, each for itself.
func (c *client) bulk(ctx context.Context, m *machine, n *node.Node, key string) {
	plan := c.plan(key)
	writes, err := c.sendTogether(ctx, n, plan)
	if err != nil {
		c.w.branches.write(err)
		return
	}
	type outcome struct {
		res api.WriteResult
		err error
	}
	outcomes := make([]outcome, len(plan)) // each is written before WriteEach returns
	err = n.Service().WriteEach(ctx, func(yield func(api.Write, func(api.WriteResult, error)) bool) {
		for i, w := range writes {
			if !yield(w, func(res api.WriteResult, err error) { outcomes[i] = outcome{res, err} }) {
				return
			}
		}
	})
	for i, p := range plan {
		if err != nil {
			outcomes[i].err = err
		}
		c.wrote(ctx, m, n, p.key, p.value, outcomes[i].res, outcomes[i].err)
	}
}

// refused notes that writes were certainly not made: nobody may ever see their values.
func (h *history) refused(plan []planned) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range plan {
		if p.value == "" {
			h.key(p.key).unknown--
		}
		delete(h.written, p.value)
	}
}

// met notes what a client was told that a comparison had met.
func (h *history) met(node, key string, res *api.TxnResult) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	s := shown{done: now, epoch: res.Epoch, rev: res.Conflicts[0].Revision, asOf: res.AsOf}
	s.absent = s.rev == 0
	h.exists(moment{now, s.epoch, max(s.rev, s.asOf)})
	h.show(nodeKey{node, key}, s)
}
