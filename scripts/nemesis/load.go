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
	// readTimeout and writeTimeout are when a client gives up on one request. What it had sent may still be carried out.
	// Writes are given up soon, so that the clients go on writing in spite of requests that hang somewhere.
	readTimeout  = 5 * time.Second
	writeTimeout = 2 * time.Second
	// pace is the mean pause of a client between two operations.
	pace = 15 * time.Millisecond
	// perNode bounds how many clients wait for one node, so that a frozen one does not stop them all.
	perNode = 3

	// probeEvery is how often a write is sent to measure write gaps, whatever became of the earlier ones, to nodes that no
	// fault touches.
	probeEvery = 50 * time.Millisecond
	// glanceEvery is how often a hot key is read strongly at a node chosen at random, whatever became of the earlier reads.
	// So a frozen node has questions in its queue that were asked at every moment while it was frozen, and must answer
	// them as of now when it wakes.
	glanceEvery  = 40 * time.Millisecond
	probeTimeout = 3 * time.Second
	maxProbes    = 64
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
	wg.Go(func() { l.glance(ctx) })
	wg.Wait()
}

// every calls do in a goroutine of its own again and again, but not while as many as may be are under way.
func (l *load) every(ctx context.Context, interval time.Duration, do func(turn int)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	slots := make(chan struct{}, maxProbes)
	var wg sync.WaitGroup
	defer wg.Wait()
	for turn := 0; ; turn++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		select {
		case slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-slots }()
				do(turn)
			})
		default:
		}
	}
}

// glance reads hot keys strongly.
func (l *load) glance(ctx context.Context) {
	l.every(ctx, glanceEvery, func(int) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		nodes := l.mesh.all()
		n := nodes[rand.IntN(len(nodes))]
		o := &op{client: clients + 1, pair: l.firstPair() + rand.IntN(hotPairs), node: n.life()}
		i := rand.IntN(2)
		o.keys[i].does = look
		l.rec.begin(o)
		l.call.read(ctx, o, n.url, i, "")
		l.rec.end(o)
	})
}

// firstPair is the first pair of the present generation.
func (l *load) firstPair() int { return hotPairs * int(time.Since(l.rec.start)/generation) }

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

// probe writes one key.
func (l *load) probe(ctx context.Context) {
	l.every(ctx, probeEvery, func(turn int) {
		var well []*node
		for _, n := range l.mesh.all() {
			if !n.touched() {
				well = append(well, n)
			}
		}
		if len(well) == 0 {
			return
		}
		n := well[turn%len(well)]
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
		defer cancel()
		o := &op{client: clients, pair: l.firstPair() + rand.IntN(hotPairs), node: n.life()}
		i := rand.IntN(2)
		o.keys[i].does = write
		l.rec.begin(o)
		l.call.write(ctx, o, n.url, i, "", 0)
		l.rec.end(o)
	})
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
		if first := c.firstPair(); first != c.first {
			c.first = first
			clear(c.tags)
		}
		nodes := c.mesh.all()
		n := nodes[c.rng.IntN(len(nodes))]
		lane := c.lane(n)
		if lane == nil {
			continue
		}
		c.one(context.WithoutCancel(ctx), n) // an operation that has begun ends by itself, so that every outcome is told
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
	case c.rng.IntN(10) < 7:
		c.compose(o, i)
	default:
		t.does = look
	}
	if t.does == look {
		bookmark := ""
		if o.cached && c.bookmark != "" && c.rng.IntN(2) == 0 {
			bookmark = c.bookmark
			_, o.bookmark = (&answer{header: map[string][]string{"Kv-Bookmark": {bookmark}}}).bookmark()
		}
		ctx, cancel := context.WithTimeout(ctx, readTimeout)
		defer cancel()
		c.rec.begin(o)
		c.call.read(ctx, o, n.url, i, bookmark)
	} else {
		ctx, cancel := context.WithTimeout(ctx, writeTimeout)
		defer cancel()
		c.rec.begin(o)
		var bookmark string
		if o.keys[1-i].does == nothing {
			bookmark = c.call.write(ctx, o, n.url, i, tagOf(held.epoch, held.rev), c.size())
		} else {
			bookmark = c.call.txn(ctx, o, n.url, c.size())
		}
		if bookmark != "" {
			c.bookmark = bookmark
		}
	}
	c.rec.end(o)
	c.learn(o)
}

// compose makes a transaction over both keys, which begins with key i.
func (c *client) compose(o *op, i int) {
	a, b := &o.keys[i], &o.keys[1-i]
	for _, t := range []*touch{a, b} {
		held, known := c.tags[[2]int{o.pair, 0}]
		if t == &o.keys[1] {
			held, known = c.tags[[2]int{o.pair, 1}]
		}
		switch dice := c.rng.IntN(10); {
		case dice < 5 && known:
			t.demand, t.expect = whenRevision, held.rev
		case dice < 6:
			t.demand = whenPresent
		case dice < 7:
			t.demand = whenAbsent
		}
	}
	a.does, b.does = write, write
	switch c.rng.IntN(10) {
	case 0:
		b.does = remove
	case 1, 2:
		if b.demand != always {
			b.does = check
		}
	}
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
