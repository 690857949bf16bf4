//go:build linux

package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	clients = 8
	// hotPairs of keys are in use at a time: ten hot keys.
	hotPairs = 5
	// generation is how long one set of keys is used. Then the clients move on to new ones, so that no single history grows
	// beyond what can be checked.
	generation = 40 * time.Second
	// requestTimeout is when a client gives up on one request. What it had sent may still be carried out.
	requestTimeout = 5 * time.Second
	// pace is the mean pause of a client between two operations.
	pace = 15 * time.Millisecond
	// perNode bounds how many clients wait for one node, so that a frozen one does not stop them all.
	perNode = 3

	// probeEvery is how often a write is sent by the probes that measure write gaps: they do not wait for earlier ones, and
	// ask nodes that no fault touches.
	probeEvery   = 50 * time.Millisecond
	probeTimeout = 3 * time.Second
	maxProbes    = 64
	// probePair holds the probes' key.
	probePair = 1_000_000
)

// load is what the clients share.
type load struct {
	mesh  *mesh
	call  *caller
	rec   *recorder
	seed  uint64
	lanes sync.Map // *node → chan struct{}: a place for each client that waits for the node
}

// run runs the clients and the probes until ctx ends.
func (l *load) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range clients {
		c := &client{load: l, id: i, rng: rand.New(rand.NewPCG(l.seed, uint64(i))), tags: make(map[[2]int]tag)}
		wg.Go(func() { c.run(ctx) })
	}
	wg.Go(func() { l.probe(ctx) })
	wg.Wait()
}

// lane takes a place at a node; nil when it has none left.
func (l *load) lane(n *node) chan struct{} {
	v, _ := l.lanes.LoadOrStore(n, make(chan struct{}, perNode))
	lane := v.(chan struct{})
	select {
	case lane <- struct{}{}:
		return lane
	default:
		return nil
	}
}

// probe writes one key again and again, whatever became of the earlier writes.
func (l *load) probe(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	slots := make(chan struct{}, maxProbes)
	var wg sync.WaitGroup
	defer wg.Wait()
	for turn := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var well []*node
		for _, n := range l.mesh.all() {
			if !n.touched() {
				well = append(well, n)
			}
		}
		if len(well) == 0 {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue // as many as may be are under way: the gap is open already
		}
		turn++
		n := well[turn%len(well)]
		wg.Go(func() {
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
			defer cancel()
			o := &op{client: clients, pair: probePair, node: n.life()}
			o.keys[0].does = write
			l.rec.begin(o)
			l.call.write(ctx, o, n.url, 0, "", 0)
			l.rec.end(o)
		})
	}
}

// tag is what a client knows of a key: the state that it saw last.
type tag struct {
	epoch string
	rev   uint64
}

// client does one operation after another.
type client struct {
	*load
	id       int
	rng      *rand.Rand
	tags     map[[2]int]tag
	first    int // the first pair of the present generation
	bookmark string
}

func (c *client) run(ctx context.Context) {
	for pause(ctx, time.Duration(c.rng.Int64N(int64(2*pace)))) {
		if first := hotPairs * int(time.Since(c.rec.start)/generation); first != c.first {
			c.first = first
			clear(c.tags)
		}
		nodes := c.mesh.all()
		n := nodes[c.rng.IntN(len(nodes))]
		lane := c.lane(n)
		if lane == nil {
			continue
		}
		// An operation that has begun ends with its own time-out, so that every outcome is told.
		once, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		c.one(once, n)
		cancel()
		<-lane
	}
}

// one does one operation.
func (c *client) one(ctx context.Context, n *node) {
	o := &op{client: c.id, pair: c.first + c.rng.IntN(hotPairs), node: n.life()}
	i := c.rng.IntN(2)
	t := &o.keys[i]
	held, known := c.tags[[2]int{o.pair, i}]
	switch dice := c.rng.IntN(100); {
	case dice < 30:
		t.does = look
	case dice < 42:
		t.does, o.cached = look, true
	case dice < 68:
		t.does = write
	case dice < 72:
		t.does, t.demand = write, whenAbsent
	case dice < 74:
		t.does, t.demand = write, whenPresent
	case dice < 86 && known:
		t.does, t.demand, t.expect = write, whenRevision, held.rev
	case dice < 87 && known:
		t.does, t.demand, t.expect = remove, whenRevision, held.rev
	case dice < 90:
		t.does = remove
	default:
		t.does = look
	}
	if t.does == look {
		bookmark := ""
		if o.cached && c.bookmark != "" && c.rng.IntN(2) == 0 {
			bookmark = c.bookmark
			_, o.bookmark = (&answer{header: map[string][]string{"Kv-Bookmark": {bookmark}}}).bookmark()
		}
		c.rec.begin(o)
		c.call.read(ctx, o, n.url, i, bookmark)
	} else {
		c.rec.begin(o)
		if b := c.call.write(ctx, o, n.url, i, tagOf(held.epoch, held.rev), c.size()); b != "" {
			c.bookmark = b
		}
	}
	c.rec.end(o)
	c.learn(o)
}

// learn keeps the states that came with a value, for later conditions.
func (c *client) learn(o *op) {
	for i, t := range o.keys {
		key := [2]int{o.pair, i}
		switch {
		case o.outcome != done:
		case (t.does == look && t.value != 0 || t.does == write) && t.rev != 0:
			c.tags[key] = tag{o.epoch, t.rev}
		case t.does == look || t.does == remove:
			delete(c.tags, key)
		}
	}
}

// size draws the size of a value: most are small, some lie beside their key's record, a few are files of their own.
func (c *client) size() int {
	switch dice := c.rng.IntN(100); {
	case dice < 4:
		return 66<<10 + c.rng.IntN(30<<10)
	case dice < 14:
		return 1500 + c.rng.IntN(3000)
	}
	return c.rng.IntN(80)
}
