package gossip

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/memberlist"
)

// A user message is a version byte followed by hints, each
//
//	hops byte, uvarint length, payload
//
// A hint's identity is xxhash64 of its payload, so that two nodes that send the same record (the writer and the leader)
// send one hint, and so that nobody can claim another's identity. The low bits of hops count how often it was passed on.
const (
	hintVersion = 1
	// isFarewell in hops marks what this package tells itself: eight random bytes, then the id of a node that leaves.
	isFarewell    = 0x80
	farewellNonce = 8
	// MaxHintBytes is the largest payload of a hint: one packet holds it.
	MaxHintBytes = 1024
	// maxHops ends the circulation of a hint that nodes have forgotten to have seen. Epidemics are ln(n) deep.
	maxHops = 12
	// maxDirect and directPerRegion bound the packets that Hint sends at once.
	directPerRegion = 3
	maxDirect       = 48
	// spreadMult: each node passes a hint on spreadMult × ⌈log10(n+1)⌉ times, as memberlist does its own news.
	spreadMult = 4
	// maxQueued and maxQueuedBytes bound what waits to be passed on. Beyond them the oldest goes: newer records still show
	// a reader of the feed that it misses something.
	maxQueued      = 1024
	maxQueuedBytes = 256 << 10
	// maxSeen bounds each of the two generations of identities: a few seconds of the worst flood, hours usually.
	maxSeen = 32 << 10
	// maxInbox and maxOutbox bound the queues before the spreading and before OnHint.
	maxInbox  = 1024
	maxOutbox = 1024
	// maxBatch bounds the messages looked at before own hints among them leave.
	maxBatch = 64
	// maxRecent, maxRecentBytes and recentFor bound the hints that a full state exchange carries.
	maxRecent      = 128
	maxRecentBytes = 8 << 10
	recentFor      = 2 * time.Minute
	maxStateBytes  = 2 * maxRecentBytes
)

// message is a frame on its way in: heard from another node, or own.
type message struct {
	buf []byte
	own bool
}

type hint struct {
	hops    byte
	payload []byte
}

func appendHint(b []byte, hops byte, payload []byte) []byte {
	b = append(b, hops)
	b = binary.AppendUvarint(b, uint64(len(payload)))
	return append(b, payload...)
}

// decodeHints calls f for each hint in a frame, until the first malformed one; false if there was one. Payloads alias b.
func decodeHints(b []byte, f func(hint)) bool {
	if len(b) < 1 || b[0] != hintVersion {
		return false
	}
	for b = b[1:]; len(b) > 0; {
		hops := b[0]
		n, k := binary.Uvarint(b[1:])
		if k <= 0 || n == 0 || n > MaxHintBytes || n > uint64(len(b)-1-k) {
			return false
		}
		b = b[1+k:]
		f(hint{hops, b[:n:n]})
		b = b[n:]
	}
	return true
}

// queued is a hint being passed on.
type queued struct {
	frame     []byte // one hint
	transmits int
	at        time.Time
}

type hints struct {
	metrics *metrics
	inbox   chan message
	outbox  chan []byte

	// seen and seenBefore are two generations of identities; only spreadLoop touches them.
	seen, seenBefore map[uint64]struct{}

	mu     sync.Mutex // guards what follows; held for walks of bounded length only, memberlist's goroutines take it
	queue  []queued   // oldest first
	bytes  int
	recent []queued // oldest first
}

func newHints(m *metrics) *hints {
	return &hints{
		metrics: m, inbox: make(chan message, maxInbox), outbox: make(chan []byte, maxOutbox),
		seen: make(map[uint64]struct{}), seenBefore: make(map[uint64]struct{}),
	}
}

// receive takes a message over; it never blocks.
func (h *hints) receive(m message) {
	select {
	case h.inbox <- m:
	default:
		h.metrics.dropped.WithLabelValues("hint_in").Inc()
	}
}

// first reports whether payload was not seen before, and remembers it.
func (h *hints) first(payload []byte) bool {
	id := xxhash.Sum64(payload)
	if _, ok := h.seen[id]; ok {
		return false
	}
	_, old := h.seenBefore[id]
	if len(h.seen) >= maxSeen {
		h.seen, h.seenBefore = make(map[uint64]struct{}), h.seen
	}
	h.seen[id] = struct{}{} // also when it was old: what still circulates stays known
	return !old
}

// dropFirst forgets the n oldest. It does not move the others, which would cost more than a hint is worth; append does when
// it runs out of room.
func dropFirst(qs []queued, n int) []queued {
	clear(qs[:n])
	return qs[n:]
}

// enqueue makes a hint wait for memberlist to take it, and for the next state exchanges.
func (h *hints) enqueue(x hint, now time.Time) {
	q := queued{frame: appendHint([]byte{hintVersion}, x.hops, x.payload), at: now}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.recent = append(h.recent, q)
	if over := len(h.recent) - maxRecent; over > 0 {
		h.recent = dropFirst(h.recent, over)
	}
	h.queue = append(h.queue, q)
	h.bytes += len(q.frame)
	drop := 0
	for len(h.queue)-drop > maxQueued || h.bytes > maxQueuedBytes {
		h.bytes -= len(h.queue[drop].frame)
		drop++
	}
	if drop > 0 {
		h.queue = dropFirst(h.queue, drop)
		h.metrics.dropped.WithLabelValues("hint_queue").Add(float64(drop))
	}
	h.metrics.queue.Set(float64(h.bytes))
}

// broadcasts picks what fits into limit bytes, the newest first: in a flood old hints wait, and are dropped in the end,
// while new ones, which tell as much about the feed, go out at once.
func (h *hints) broadcasts(overhead, limit, nodes int) [][]byte {
	most := spreadMult * int(math.Ceil(math.Log10(float64(nodes+1))))
	h.mu.Lock()
	defer h.mu.Unlock()
	var out [][]byte
	done := false
	for i := len(h.queue) - 1; i >= 0 && limit > overhead; i-- {
		q := &h.queue[i]
		if len(q.frame)+overhead > limit {
			continue
		}
		limit -= len(q.frame) + overhead
		out = append(out, q.frame)
		q.transmits++
		done = done || q.transmits >= most
	}
	if done {
		h.queue = slices.DeleteFunc(h.queue, func(q queued) bool {
			if q.transmits < most {
				return false
			}
			h.bytes -= len(q.frame)
			return true
		})
		h.metrics.queue.Set(float64(h.bytes))
	}
	return out
}

// recentHints is one frame of the newest hints.
func (h *hints) recentHints(now time.Time) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	b := []byte{hintVersion}
	for i := len(h.recent) - 1; i >= 0; i-- {
		q := h.recent[i]
		if now.Sub(q.at) > recentFor || len(b)+len(q.frame) > maxRecentBytes {
			break
		}
		b = append(b, q.frame[1:]...)
	}
	if len(b) == 1 {
		return nil
	}
	return b
}

// spreadLoop reads the inbox: what is new goes to the outbox and to the queue, what is ours also out at once.
func (g *Gossip) spreadLoop() {
	for {
		var m message
		select {
		case <-g.ctx.Done():
			return
		case m = <-g.hints.inbox:
		}
		direct := []byte{hintVersion}
		if own := g.spread(m); own != nil {
			direct = append(direct, own...)
		}
		// Own hints that came meanwhile share the packets.
		for n := 0; len(direct) > 1 && n < maxBatch; n++ {
			var own []byte
			select {
			case m = <-g.hints.inbox:
				own = g.spread(m)
			default:
				n = maxBatch
			}
			if len(direct)+len(own) > MaxHintBytes {
				g.sendDirect(direct)
				direct = direct[:1]
			}
			direct = append(direct, own...)
		}
		if len(direct) > 1 {
			g.sendDirect(direct)
		}
	}
}

// spread handles one frame and returns the part that is to be sent at once.
func (g *Gossip) spread(m message) (direct []byte) {
	h, now := g.hints, time.Now()
	ok := decodeHints(m.buf, func(x hint) {
		if !h.first(x.payload) {
			h.metrics.hints.WithLabelValues("duplicate").Inc()
			return
		}
		switch {
		case m.own:
			h.metrics.hints.WithLabelValues("sent").Inc()
			direct = m.buf[1:]
		case x.hops&isFarewell != 0:
			if len(x.payload) > farewellNonce {
				g.table.farewell(string(x.payload[farewellNonce:]))
			}
		default:
			h.metrics.hints.WithLabelValues("first").Inc()
			g.deliver(x.payload)
		}
		if x.hops&^isFarewell < maxHops {
			if !m.own {
				x.hops++
			}
			h.enqueue(x, now)
		}
	})
	if !ok {
		h.metrics.hints.WithLabelValues("malformed").Inc()
	}
	return direct
}

func (g *Gossip) deliver(payload []byte) {
	if g.opts.OnHint == nil {
		return
	}
	select {
	case g.hints.outbox <- append([]byte(nil), payload...):
	default:
		g.metrics.dropped.WithLabelValues("hint_out").Inc()
	}
}

func (g *Gossip) deliverLoop() {
	for {
		select {
		case <-g.ctx.Done():
			return
		case p := <-g.hints.outbox:
			g.opts.OnHint(p)
		}
	}
}

// sendFarewell tells every member that this node leaves. They pass it on like a hint; this node will not be there to do so.
func (g *Gossip) sendFarewell() {
	payload := binary.LittleEndian.AppendUint64(nil, rand.Uint64()) // a node may leave again one day
	payload = append(payload, g.opts.ID...)
	frame := appendHint([]byte{hintVersion}, isFarewell, payload)
	for _, m := range g.Members() {
		if m.Self || (m.State != Alive && m.State != Suspect) {
			continue
		}
		if err := g.ml.SendToAddress(memberlist.Address{Addr: m.Gossip, Name: m.ID}, frame); err != nil {
			g.log.Debug("farewell not sent", "node", m.ID, "err", err)
		}
	}
}

// sendDirect sends a frame to a few members of every region, in random order.
func (g *Gossip) sendDirect(frame []byte) {
	members := slices.Clone(g.Members())
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	perRegion := make(map[string]int)
	total := 0
	for _, m := range members {
		if m.Self || !m.Reachable() || perRegion[m.Region] == directPerRegion {
			continue
		}
		if total++; total > maxDirect {
			return
		}
		perRegion[m.Region]++
		if err := g.ml.SendToAddress(memberlist.Address{Addr: m.Gossip, Name: m.ID}, frame); err != nil {
			g.log.Debug("hint not sent", "node", m.ID, "err", err)
			continue
		}
		g.metrics.hints.WithLabelValues("direct").Inc()
	}
}
