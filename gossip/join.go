package gossip

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// lostPerRound is how many lost members one round looks for: the first that answers brings all it knows with it.
	lostPerRound = 5
	// parallelJoins bounds the attempts of one round that run at a time; one to a dead address takes timing.stream.
	parallelJoins = 8
	// maxSeedAddrs bounds the addresses behind one seed's name.
	maxSeedAddrs = 8
	// resolveTimeout bounds one look-up.
	resolveTimeout = 5 * time.Second
	// settleRounds is how many full exchanges with a random member follow the first meeting, at growing intervals. Nodes
	// that start together hear of each other by gossip, of which a node now and then misses a piece; the next regular
	// exchange would be half a minute away.
	settleRounds = 4
	// repeatAlone and repeatMet are how often an unchanged failure of a seed is logged again.
	repeatAlone = time.Minute
	repeatMet   = time.Hour
)

// JoinState tells how joining goes.
type JoinState struct {
	// Met says that this node has known another member of its pool since it was started.
	Met bool
	// Seeds in the order of Options.Seeds.
	Seeds []SeedState
}

// SeedState is one seed.
type SeedState struct {
	Addr string // as it was given
	Self bool   // it is this node itself, and not asked
	// Joined says that the last attempt succeeded, or that a member has this address.
	Joined bool
	// Err is what the last attempt met, in plain words; "" when there was none or it succeeded.
	Err string
	// Refused says that somebody is there who is not of this mesh, or does not let this node in.
	Refused bool
}

// Waiting reports whether the node was given seeds other than itself and has met nobody yet: it is not ready.
func (j JoinState) Waiting() bool {
	for _, s := range j.Seeds {
		if !s.Self && !j.Met {
			return true
		}
	}
	return false
}

// JoinState is the state of joining, for readiness and for people.
func (g *Gossip) JoinState() JoinState {
	met := g.met()
	g.seeds.mu.Lock()
	defer g.seeds.mu.Unlock()
	g.seeds.met = g.seeds.met || met
	j := JoinState{Met: g.seeds.met}
	for _, s := range g.seeds.seeds {
		j.Seeds = append(j.Seeds, s.SeedState)
	}
	return j
}

func (g *Gossip) met() bool { return len(g.Members()) > 1 }

// seedBook is what is known about the seeds.
type seedBook struct {
	mu    sync.Mutex // guards all below; held for assignments only
	met   bool
	seeds []seedEntry
}

type seedEntry struct {
	SeedState
	logged time.Time // when Err was logged last
}

func newSeedBook(addrs []string) *seedBook {
	b := &seedBook{}
	for _, a := range addrs {
		b.seeds = append(b.seeds, seedEntry{SeedState: SeedState{Addr: a}})
	}
	return b
}

// joinLoop looks for seeds and lost members: quickly while nobody was ever met, every g.time.rejoin from then on.
// memberlist itself forgets dead nodes after GossipToTheDeadTime, so that without this the halves of a mesh that was cut
// for longer never find together again.
func (g *Gossip) joinLoop() {
	start := time.Now()
	retry, settled := g.time.firstRetry, 0
	for {
		began := time.Now()
		known := g.opts.KnownPeers
		if began.Sub(start) > forgetFailed {
			known = nil
		}
		tried := g.joinRound(known)
		wait := g.time.rejoin
		switch met := g.JoinState().Met; {
		case !met && tried > 0:
			wait, retry = min(retry, wait), retry*2
		case met && settled < settleRounds:
			if settled > 0 {
				g.exchange()
			}
			wait = min(g.time.firstRetry<<settled, wait)
			settled++
		}
		wait = time.Duration(float64(wait) * (0.8 + 0.4*rand.Float64())) // so that nodes do not move in step
		select {
		case <-g.ctx.Done():
			return
		case <-time.After(max(wait-time.Since(began), g.time.firstRetry/2)):
		}
	}
}

// exchange exchanges the full state with a random live member.
func (g *Gossip) exchange() {
	var live []string
	for _, m := range g.Members() {
		if !m.Self && m.State == Alive {
			live = append(live, m.Gossip)
		}
	}
	if len(live) == 0 {
		return
	}
	addr := live[rand.IntN(len(live))]
	if err := g.join(addr); err != nil {
		g.log.Debug("state exchange failed", "addr", addr, "err", err)
	}
}

// joinRound asks every seed that is no live member, and some of the lost members. It returns how many addresses it tried.
func (g *Gossip) joinRound(known []string) int {
	live := make(map[string]bool)
	lost := make([]string, 0, len(known))
	for _, m := range g.Members() {
		switch m.State {
		case Alive, Suspect:
			live[m.Gossip] = true
		case Failed:
			lost = append(lost, m.Gossip)
		case Left: // on purpose
		}
	}
	lost = append(lost, known...)
	rand.Shuffle(len(lost), func(i, j int) { lost[i], lost[j] = lost[j], lost[i] })

	r := round{g: g, live: live, slots: make(chan struct{}, parallelJoins), asked: make(map[string]bool)}
	for i := range g.opts.Seeds {
		r.wg.Go(func() { r.seed(i) })
	}
	r.wg.Wait() // first: an address that a seed has named is not asked again
	for _, addr := range lost {
		if r.lost >= lostPerRound {
			break
		}
		r.lostMember(addr)
	}
	r.wg.Wait()
	return len(r.asked)
}

// round is one pass of joinLoop.
type round struct {
	g     *Gossip
	live  map[string]bool // gossip addresses of live members
	lost  int
	slots chan struct{}
	wg    sync.WaitGroup

	mu    sync.Mutex // guards asked
	asked map[string]bool
}

// take reports whether addr is still to be asked in this round.
func (r *round) take(addr string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked[addr] {
		return false
	}
	r.asked[addr] = true
	return true
}

func (r *round) join(addr string) error {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
		return r.g.join(addr)
	case <-r.g.ctx.Done():
		return r.g.ctx.Err()
	}
}

func (r *round) seed(i int) {
	seed := r.g.opts.Seeds[i]
	addrs, err := resolve(r.g.ctx, seed)
	if err != nil {
		r.g.seedResult(i, SeedState{Addr: seed, Err: fmt.Sprintf("seed %s: %v, will keep trying", seed, err)})
		r.take(seed) // counts as tried
		return
	}
	state := SeedState{Addr: seed, Self: true}
	for _, a := range addrs {
		switch {
		case r.g.tr.isSelf(a):
			continue
		case r.live[a.String()]:
			state.Joined = true
		case r.take(a.String()):
			if err := r.join(a.String()); err != nil {
				state.Err = fmt.Sprintf("seed %s %v", seed, err)
				var refused *joinError
				state.Refused = state.Refused || errors.As(err, &refused) && refused.result != noAnswer
			} else {
				state.Joined = true
			}
		}
		state.Self = false
	}
	if state.Joined {
		state.Err, state.Refused = "", false
	}
	r.g.seedResult(i, state)
}

func (r *round) lostMember(addr string) {
	addrs, err := resolve(r.g.ctx, addr)
	if err != nil {
		r.g.log.Debug("lost member: address not usable", "addr", addr, "err", err)
		return
	}
	for _, a := range addrs {
		if r.g.tr.isSelf(a) || r.live[a.String()] || !r.take(a.String()) {
			continue
		}
		r.lost++
		r.wg.Go(func() {
			if err := r.join(a.String()); err != nil {
				r.g.log.Debug("lost member still lost", "addr", a.String(), "err", err)
			} else {
				r.g.log.Info("found a lost member again", "addr", a.String())
			}
		})
	}
}

// seedResult notes how a seed answered, and logs it when that is news or was not said for long.
func (g *Gossip) seedResult(i int, s SeedState) {
	if g.ctx.Err() != nil {
		return
	}
	met := g.met()
	g.seeds.mu.Lock()
	old := g.seeds.seeds[i]
	now, repeat := time.Now(), repeatAlone
	if met {
		repeat = repeatMet
	}
	tell := s.Err != "" && (s.Err != old.Err || now.Sub(old.logged) >= repeat)
	entry := seedEntry{SeedState: s, logged: old.logged}
	if tell {
		entry.logged = now
	}
	g.seeds.seeds[i] = entry
	g.seeds.mu.Unlock()
	switch {
	case tell:
		g.log.Warn(s.Err, "seed", s.Addr)
	case s.Joined && !old.Joined:
		g.log.Info("joined through seed "+s.Addr, "seed", s.Addr)
	}
}

// join exchanges the full state with the node at addr (IP:port). Its errors continue the sentence "seed x …".
func (g *Gossip) join(addr string) error {
	dialled := g.tr.watchDials(addr)
	_, err := g.ml.Join([]string{addr})
	dialErr := dialled()
	if err == nil {
		g.metrics.joins.WithLabelValues("ok").Inc()
		return nil
	}
	result, text := explain(dialErr, err)
	g.metrics.joins.WithLabelValues(result).Inc()
	return &joinError{result, text}
}

// joinError is why an address could not be joined: what it is called in metrics, and in plain words.
type joinError struct{ result, text string }

func (e *joinError) Error() string { return e.text }

// noAnswer is the result of an address at which nobody answers.
const noAnswer = "no_answer"

// explain says what kept a node from joining. The error of the dial is a real one; that of memberlist is text.
func explain(dialErr, joinErr error) (result, text string) {
	var timeout net.Error
	switch {
	case errors.Is(dialErr, syscall.ECONNREFUSED):
		return noAnswer, "does not answer (connection refused), will keep trying"
	case errors.As(dialErr, &timeout) && timeout.Timeout(), errors.Is(dialErr, context.DeadlineExceeded):
		return noAnswer, "does not answer (timeout), will keep trying"
	case dialErr != nil:
		return noAnswer, fmt.Sprintf("does not answer (%v), will keep trying", dialErr)
	}
	s := joinErr.Error()
	switch {
	case strings.Contains(s, errForeign.Error()):
		return "foreign", errForeign.Error() + ": check --join and --data-dir"
	case strings.Contains(s, "is incompatible"): // protocol versions; memberlist names both
		return "version", "cannot be joined: " + strings.TrimSpace(s)
	case strings.Contains(s, "i/o timeout"), strings.Contains(s, "deadline exceeded"):
		return noAnswer, "accepted the connection and then said nothing (timeout), will keep trying"
	}
	return "closed", "answered but closed the connection: wrong mesh key, or a node of another mesh"
}

// resolve turns host:port into addresses.
func resolve(ctx context.Context, hostport string) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(hostport); err == nil {
		return []netip.AddrPort{plain(a.Addr(), a.Port())}, nil
	}
	host, service, err := net.SplitHostPort(hostport)
	if err != nil {
		return nil, err
	}
	port, err := net.LookupPort("tcp", service)
	if err != nil {
		return nil, err
	}
	ips, err := resolveHost(ctx, host)
	if err != nil {
		return nil, err
	}
	out := make([]netip.AddrPort, 0, len(ips))
	for _, ip := range ips[:min(len(ips), maxSeedAddrs)] {
		out = append(out, plain(ip, uint16(port)))
	}
	return out, nil
}

// plain is the form in which memberlist writes addresses.
func plain(ip netip.Addr, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(ip.Unmap().WithZone(""), port)
}

func resolveHost(ctx context.Context, host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("the name cannot be resolved: %w", err)
	}
	if len(ips) == 0 {
		return nil, errors.New("the name has no address")
	}
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, nil
}

// isSelf reports whether addr is this node's own listener.
func (t *transport) isSelf(addr netip.AddrPort) bool {
	if addr == t.self || addr == t.bound {
		return true
	}
	if addr.Port() != t.bound.Port() || !t.bound.Addr().IsUnspecified() {
		return false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false // joining oneself is harmless
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr.Addr() {
			return true
		}
	}
	return false
}
