package raftstore

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// StreamLayer is how Raft speaks to other voters. Addresses are node ids, so that a node may change its network address
// freely: Accept and DialNode give authenticated connections, and a silent peer is noticed by the StreamLayer (TCP
// keepalive and user timeout), because the deadline for sending a checkpoint grows with its size. Close makes Accept
// return; DialNode must end with ctx.
type StreamLayer interface {
	net.Listener
	DialNode(ctx context.Context, nodeID string) (net.Conn, error)
}

// streams makes a raft.StreamLayer of a StreamLayer. It keeps track of every connection, because the library leaves its
// accepted and its pooled ones open when it is closed.
type streams struct {
	StreamLayer
	self     string
	ctx      context.Context // ends the dials
	lineages *lineages
	log      *slog.Logger

	refuse func() bool // nobody is let in or dialed while it says so

	mu     sync.Mutex // guards all below
	conns  map[net.Conn]struct{}
	closed bool
}

var errRefused = errors.New("this node has cut itself off, because its disk does not answer")

func newStreams(
	ctx context.Context, layer StreamLayer, self string, l *lineages, refuse func() bool, log *slog.Logger,
) *streams {
	return &streams{
		StreamLayer: layer, self: self, ctx: ctx, lineages: l, refuse: refuse, log: log, conns: make(map[net.Conn]struct{}),
	}
}

type nodeAddr string

func (nodeAddr) Network() string  { return "kvmesh" }
func (a nodeAddr) String() string { return string(a) }

// Addr is the node id: the library takes its own Raft address from here.
func (s *streams) Addr() net.Addr { return nodeAddr(s.self) }

func (s *streams) Accept() (net.Conn, error) {
	for {
		c, err := s.StreamLayer.Accept()
		if err != nil {
			return nil, err
		}
		t, err := s.track(c, true)
		if err == nil || !errors.Is(err, errRefused) {
			return t, err
		}
	}
}

func (s *streams) Dial(node raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	if s.refuse() {
		return nil, errRefused
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.DialNode(ctx, string(node))
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })() // a greeting that nobody answers
	if err := s.lineages.greet(c, string(node)); err != nil {
		return nil, errors.Join(err, ctx.Err(), c.Close())
	}
	return s.track(c, false)
}

func (s *streams) track(c net.Conn, called bool) (net.Conn, error) {
	t := &trackedConn{Conn: c, in: s, called: called}
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.conns[t] = struct{}{}
	}
	s.mu.Unlock()
	if closed {
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
	if s.refuse() { // looked at after cut may have missed the connection
		return nil, errors.Join(errRefused, t.Close())
	}
	return t, nil
}

// cut ends every connection.
func (s *streams) cut() {
	s.mu.Lock()
	conns := s.conns
	s.conns = make(map[net.Conn]struct{})
	s.mu.Unlock()
	for c := range conns {
		_ = c.Close() // a connection that is given up anyway
	}
}

// closeAll ends every connection, and those that are being made, for ever.
func (s *streams) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cut()
}

// trackedConn is one connection. One that was accepted answers the caller's greeting with its first Read, which is on a
// goroutine of its own: Accept waits for nobody.
type trackedConn struct {
	net.Conn
	in     *streams
	called bool // the greeting is still to come; used by the one reader only
}

func (t *trackedConn) Read(p []byte) (int, error) {
	if t.called {
		t.called = false
		if err := t.in.lineages.answer(t.Conn); err != nil {
			if !errors.Is(err, io.EOF) && t.in.ctx.Err() == nil {
				t.in.log.Warn("refused a Raft connection", "err", err)
			}
			return 0, io.EOF // the library logs every other error as a broken command
		}
	}
	return t.Conn.Read(p)
}

func (t *trackedConn) Close() error {
	t.in.mu.Lock()
	delete(t.in.conns, t)
	t.in.mu.Unlock()
	return t.Conn.Close()
}

// transport is the library's, with three additions: it notes when a request that was answered with success had been sent
// (see acks), it bounds requests by bytes, and it takes out of others' requests what the library cannot compare (see
// uncovered).
type transport struct {
	*raft.NetworkTransport
	acks     *acks
	mono     func() time.Duration
	snapshot func() uint64 // index of this member's newest snapshot
	incoming chan raft.RPC // what others ask of this member

	mu   sync.Mutex                // guards sent
	sent map[raft.ServerID]carried // what the library has told each member
}

// carried is what the library's requests have brought a member in a term.
type carried struct {
	term   uint64
	commit uint64 // the newest commit index
	last   uint64 // the last entry, while such a request is under way
	match  uint64 // up to which its log was found to agree
}

// AppendEntriesPipeline is refused, so that every request passes AppendEntries. Pipelining is wanted neither: it can
// deadlock (hashicorp/raft #611, #612) and hurts latency (#541).
func (t *transport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries sends as many of the entries as fit into maxAppendBytes, at least one. It cuts args itself: the replicator
// advances by what args holds after the call, and comes back for the rest.
func (t *transport) AppendEntries(
	id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse,
) error {
	args.Entries = fitting(args.Entries)
	if args.PrevLogEntry > 0 || len(args.Entries) > 0 { // no heartbeat
		t.carry(id, args.Term, args.LeaderCommitIndex, lastOf(args))
		defer t.carry(id, args.Term, 0, 0)
	}
	if err := t.append(id, target, args, resp); err != nil {
		return err
	}
	switch {
	case resp.Term != args.Term:
	case !resp.Success:
		t.acks.rejected(args.Term, id)
		t.matched(id, args.Term, 0, resp.LastLog)
	default:
		t.matched(id, args.Term, lastOf(args), math.MaxUint64)
	}
	return nil
}

// InstallSnapshot notes what the member holds then.
func (t *transport) InstallSnapshot(
	id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader,
) error {
	err := t.NetworkTransport.InstallSnapshot(id, target, args, resp, data)
	if err == nil && resp.Success && resp.Term == args.Term {
		t.matched(id, args.Term, args.LastLogIndex, math.MaxUint64)
	}
	return err
}

// notice sends a request of the announcer. One that is rejected says nothing about the member's log: it may have overtaken
// the request that it was to follow.
func (t *transport) notice(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest) (success bool, err error) {
	var resp raft.AppendEntriesResponse
	err = t.append(id, target, args, &resp)
	return resp.Success && resp.Term == args.Term, err
}

// carry notes what a request of the library brings; last 0: it is not under way any more.
func (t *transport) carry(id raft.ServerID, term, commit, last uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.sent[id]
	if c.term != term {
		c = carried{term: term}
	}
	c.commit, c.last = max(c.commit, commit), last
	t.sent[id] = c
}

// matched notes that the library has found a member's log to agree up to at least one index, and at most another.
func (t *transport) matched(id raft.ServerID, term, least, most uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.sent[id]
	if c.term != term {
		c = carried{term: term}
	}
	c.match = min(max(c.match, least), most)
	t.sent[id] = c
}

// carried is what the library has told a member in a term.
func (t *transport) carried(term uint64, id raft.ServerID) carried {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.sent[id]; c.term == term {
		return c
	}
	return carried{}
}

// append sends one request and notes a success.
func (t *transport) append(
	id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse,
) error {
	ticket := t.acks.ticket() // before anything is sent
	at := t.mono()
	// The library decodes into the same resp again and again; a fresh one cannot carry an earlier Success.
	var answer raft.AppendEntriesResponse
	if err := t.NetworkTransport.AppendEntries(id, target, args, &answer); err != nil {
		return err
	}
	*resp = answer
	if mutConfirmEarlyAcks {
		ticket = t.acks.ticket()
	}
	if answer.Term == args.Term && answer.Success {
		t.acks.success(args.Term, id, ack{ticket: ticket, at: at, match: lastOf(args)})
	}
	return nil
}

// lastOf is the last entry up to which a member's log agrees when it has taken a request.
func lastOf(args *raft.AppendEntriesRequest) uint64 {
	if n := len(args.Entries); n > 0 {
		return args.Entries[n-1].Index
	}
	return args.PrevLogEntry
}

func fitting(entries []*raft.Log) []*raft.Log {
	bytes := 0
	for i, l := range entries {
		if bytes += len(l.Data) + len(l.Extensions); bytes > maxAppendBytes && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// ack is the newest request that a server answered with success in the present term.
type ack struct {
	ticket uint64        // see acks
	at     time.Duration // monotonic clock when it was sent
	match  uint64        // the follower's log agrees up to here; 0 after heartbeats
}

// acks knows, of each server, the newest AppendEntries request that it answered with success in the newest term of this
// node's leadership. "Newer" is an order of events, not a clock reading: everything that is compared draws a ticket from
// one counter, so that two events within one tick of the clock are still in order.
type acks struct {
	changed chan struct{} // holds one token when something was noted

	mu    sync.Mutex // guards all below
	drawn uint64
	term  uint64
	by    map[raft.ServerID]ack
}

func newAcks() *acks { return &acks{changed: make(chan struct{}, 1)} }

// ticket numbers an event: larger than everything drawn before.
func (a *acks) ticket() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drawn++
	return a.drawn
}

func (a *acks) success(term uint64, id raft.ServerID, got ack) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if term < a.term {
		return
	}
	if term > a.term {
		a.term, a.by = term, make(map[raft.ServerID]ack)
	}
	old := a.by[id]
	a.by[id] = ack{ticket: max(old.ticket, got.ticket), at: max(old.at, got.at), match: max(old.match, got.match)}
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// rejected says that a server's log does not agree where it was thought to: it has lost its disk, perhaps.
func (a *acks) rejected(term uint64, id raft.ServerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if got, ok := a.by[id]; ok && term == a.term {
		got.match = 0
		a.by[id] = got
	}
}

// of returns what is known of one server in term.
func (a *acks) of(term uint64, id raft.ServerID) (ack, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	got, ok := a.by[id]
	return got, ok && term == a.term
}

// quorum returns the largest ticket t for which a majority of the voters has answered, in term, a request with a ticket of
// t or more; self, if it is a voter, counts as having answered everything.
func (a *acks) quorum(term uint64, voters []raft.ServerID, self raft.ServerID) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(voters) == 0 {
		return 0
	}
	tickets := make([]uint64, 0, len(voters))
	for _, v := range voters {
		switch {
		case v == self:
			tickets = append(tickets, ^uint64(0))
		case term == a.term:
			tickets = append(tickets, a.by[v].ticket)
		default:
			tickets = append(tickets, 0)
		}
	}
	slices.Sort(tickets)
	return tickets[(len(tickets)-1)/2] // as many or more are at or above it: n - (n-1)/2 ≥ n/2 + 1
}
