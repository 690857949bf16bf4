package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

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

// cacheSizes of the machines, in turn: ten entries, room for everything, three entries.
var cacheSizes = []int64{4 << 10, 64 << 10, 3 << 9}

func keyName(i int) string { return fmt.Sprintf("key-%02d", i) }

// run drives the mesh for d of virtual time, then heals it and checks that everything converges.
func (w *world) run(ctx context.Context, d time.Duration) error {
	if w.grained() {
		w.net.SetGrain(time.Millisecond)
	}
	for i, m := range w.machines {
		m.gate = gateFeeds(m)
		m.opts.CacheBytes = cacheSizes[i%len(cacheSizes)]
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
	end := time.Now().Add(d)
	var trouble sync.WaitGroup
	trouble.Go(func() { w.faults(ctx, end, ns) })
	trouble.Go(func() { w.storms(ctx, end, ns) })
	trouble.Wait()
	stopClients()
	w.clients.Wait()
	if !w.going(ctx) {
		return nil
	}
	return w.converge(ctx, ns)
}

// grained says that everything arrives at full milliseconds, so that much happens at the same instant, in any order.
func (w *world) grained() bool { return w.seed%2 == 0 }

// going says whether there is any point in going on.
func (w *world) going(ctx context.Context) bool { return ctx.Err() == nil && !w.enough() }

// pause lets time pass, while there is any point in that.
func (w *world) pause(d time.Duration) {
	const step = 500 * time.Millisecond
	for ; d > 0 && !w.enough(); d -= step {
		time.Sleep(min(d, step))
	}
}

// faults breaks things until end, one after the other, some at the same time.
func (w *world) faults(ctx context.Context, end time.Time, ns kv.Namespace) {
	user := &client{w: w, ns: ns, id: numClients + 1, rng: w.rng}
	for time.Now().Before(end) && w.going(ctx) {
		w.pause(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
		hold := time.Duration(200+w.rng.IntN(6000)) * time.Millisecond
		m := w.machines[w.rng.IntN(len(w.machines))]
		o := w.machines[w.rng.IntN(len(w.machines))]
		switch w.rng.IntN(12) {
		case 0, 1: // one machine crashes and comes back
			w.log.Info("fault: crash", "node", m.name, "for", hold)
			w.crash(m)
			w.pause(hold)
			w.reboot(m)
		case 2: // the leader crashes
			if l := w.leader(); l != nil {
				w.log.Info("fault: leader crash", "node", l.name)
				w.crash(l)
				w.pause(hold)
				w.reboot(l)
			}
		case 3: // one direction of a link is cut
			w.log.Info("fault: one-way cut", "from", m.name, "to", o.name, "for", hold)
			w.net.Cut(m.ip, o.ip, true)
			w.pause(hold)
			w.net.Cut(m.ip, o.ip, false)
		case 4: // a machine is cut off, now and then for longer than the change index reaches back
			if w.rng.IntN(3) == 0 {
				hold += 25 * time.Second
			}
			w.log.Info("fault: isolated", "node", m.name, "for", hold)
			w.isolate(m, true)
			w.pause(hold)
			w.isolate(m, false)
		case 5: // a region is cut off
			w.log.Info("fault: region cut off", "region", m.region, "for", hold)
			w.cutRegion(m.region, true)
			w.pause(hold)
			w.cutRegion(m.region, false)
		case 6: // all voters are out of reach of the edges
			w.log.Info("fault: voters out of reach", "for", hold)
			w.cutVoters(true)
			w.pause(hold)
			w.cutVoters(false)
		case 7: // a wall clock jumps
			d := time.Duration(w.rng.IntN(7200)-3600) * time.Second
			w.log.Info("fault: wall clock", "node", m.name, "by", d)
			m.clock.setWall(d)
		case 8: // a machine sleeps, now and then hardly for longer than it takes to be noticed
			if w.rng.IntN(2) == 0 {
				hold = time.Duration(30+w.rng.IntN(300)) * time.Millisecond
			}
			w.log.Info("fault: sleep", "node", m.name, "for", hold)
			w.isolate(m, true)
			w.pause(hold)
			m.clock.sleep(hold)
			w.isolate(m, false)
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
			w.pause(hold)
			for _, v := range down {
				w.reboot(v)
			}
		case 10:
			w.newEpoch(ctx, m)
		case 11:
			w.restartBehind(ctx, user)
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
	w.weather.clear()
	for _, m := range w.machines {
		m.clock.setWall(0)
		m.gate.set(false)
		if m.running() == nil {
			w.reboot(m)
		}
	}
	// A write that its client has given up may still land, as long as its request or the leader's entry is on its way.
	time.Sleep(30 * time.Second)
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
	var rev, asOf kv.Revision
	for range 600 {
		start := time.Now()
		v, got, err := get(ctx, m.running(), ns, key, time.Hour, api.Consistency{})
		if err == nil {
			w.history.read(m.name, key, start, demand{ttl: time.Hour}, v, got)
			rev, asOf = v.Revision, v.AsOf
			if tier, value = v.Tier, got; tier == api.TierHit && value == want {
				return nil
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("converge: %s serves %q (revision %d as of %d) by %s for %s, a minute after everything was healed; want %q as a hit",
		m.name, value, rev, asOf, tier, key, want)
}
