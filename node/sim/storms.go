package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/certs"
	"kvmesh/node/simnet"
	"kvmesh/raftstore/kv"
)

// weather is what is wrong with the network for a while, beyond what is cut.
type weather struct {
	mu    sync.Mutex // guards all below; taken inside the network's lock
	slow  map[[2]string]time.Duration
	lossy map[string]float64 // the share of what a machine sends and is sent
}

func (w *weather) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow, w.lossy = make(map[[2]string]time.Duration), make(map[string]float64)
}

// on is what a link is like in this weather.
func (w *weather) on(l simnet.Link, from, to string) simnet.Link {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.Delay += w.slow[[2]string{from, to}]
	if loss := max(w.lossy[from], w.lossy[to]); loss > 0 {
		l.Loss, l.Duplicate = max(l.Loss, loss), max(l.Duplicate, 0.2)
	}
	return l
}

// delay adds to the delay of one direction, 0 ends that.
func (w *weather) delay(from, to string, d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.slow[[2]string{from, to}] = d
}

func (w *weather) lose(ip string, share float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lossy[ip] = share
}

// storms troubles the network until end, while machines crash (faults): things arrive late, out of step or not at all,
// and voters no longer hear each other while everybody else hears them.
func (w *world) storms(ctx context.Context, end time.Time, ns kv.Namespace) {
	rng := rand.New(rand.NewPCG(w.seed, 0x73746f726d))
	user := &client{w: w, ns: ns, id: numClients, rng: rng}
	for time.Now().Before(end) && w.going(ctx) {
		w.pause(time.Duration(rng.IntN(3000)) * time.Millisecond)
		hold := time.Duration(1000+rng.IntN(5000)) * time.Millisecond
		m := w.machines[rng.IntN(len(w.machines))]
		switch rng.IntN(7) {
		case 0, 1: // half of what one machine sends and gets is lost; streams fall behind each other
			w.log.Info("storm: loss", "node", m.name, "for", hold)
			w.weather.lose(m.ip, 0.5)
			user.watch(ctx, m, hold)
			w.weather.lose(m.ip, 0)
		case 2: // nearly all hints are lost and the feeds are cut; what is left are pulls
			w.log.Info("storm: loss, feed cut", "node", m.name, "for", hold)
			w.weather.lose(m.ip, 0.9)
			m.gate.set(true)
			user.watch(ctx, m, hold)
			m.gate.set(false)
			w.weather.lose(m.ip, 0)
		case 3: // whatever it is sent arrives late
			late := time.Duration(50+rng.IntN(1500)) * time.Millisecond
			w.log.Info("storm: hears late", "node", m.name, "by", late, "for", hold)
			w.hearLate(w.machines, m, late)
			w.pause(hold)
			w.hearLate(w.machines, m, 0)
		case 4, 5:
			w.deposed(ctx, user, hold)
		case 6:
			if v := w.follower(rng); v != nil {
				w.log.Info("storm: a voter falls behind", "node", v.name, "for", hold)
				w.cutFromVoters(v, true)
				w.pause(hold)
				w.cutFromVoters(v, false)
			}
		}
	}
}

func (w *world) newEpoch(ctx context.Context, m *machine) {
	n := m.running()
	if n == nil {
		return
	}
	w.log.Info("fault: a new epoch", "node", m.name)
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := n.NewEpoch(ctx); err != nil {
		w.log.Info("no new epoch", "error", err)
		return
	}
	w.branches.add("epoch begun", 1)
}

// deposed lets the leader hear the other voters late: what they answered before they elected somebody else still arrives
// when that one has committed more. Whoever takes such answers for a proof shows what is overwritten.
func (w *world) deposed(ctx context.Context, user *client, hold time.Duration) {
	old := w.leader()
	if old == nil {
		return
	}
	w.log.Info("storm: the leader hears late", "node", old.name, "for", hold)
	voters := w.only(certs.RoleVoter)
	w.hearLate(voters, old, 3*time.Second)
	ctx, cancel := context.WithTimeout(ctx, hold+2*time.Second)
	defer cancel()
	var ops sync.WaitGroup // each goes its own way, because some wait long
	defer ops.Wait()
	for end := time.Now().Add(hold); time.Now().Before(end) && w.going(ctx); {
		w.pause(50 * time.Millisecond)
		if n := old.running(); n != nil {
			ops.Go(func() { user.ask(ctx, old, n, keyName(0), 0, api.Consistency{Strong: true}) })
		}
		if v := voters[user.rng.IntN(len(voters))]; v != old && user.rng.IntN(2) == 0 {
			if n := v.running(); n != nil {
				value := user.next()
				ops.Go(func() { user.put(ctx, v, n, keyName(0), value) })
			}
		}
	}
	w.hearLate(voters, old, 0)
}

// hearLate lets what some machines send to one arrive later by d; 0 ends that.
func (w *world) hearLate(from []*machine, to *machine, d time.Duration) {
	for _, o := range from {
		if o != to {
			w.weather.delay(o.ip, to.ip, d)
		}
	}
}

// cutFromVoters cuts a voter off from the other voters, and from nobody else.
func (w *world) cutFromVoters(v *machine, cut bool) {
	for _, o := range w.only(certs.RoleVoter) {
		if o != v {
			w.net.Cut(v.ip, o.ip, cut)
			w.net.Cut(o.ip, v.ip, cut)
		}
	}
}

// follower is a voter that runs and does not lead, nil if there is none.
func (w *world) follower(rng *rand.Rand) *machine {
	voters := w.only(certs.RoleVoter)
	rng.Shuffle(len(voters), func(i, j int) { voters[i], voters[j] = voters[j], voters[i] })
	for _, v := range voters {
		if n := v.running(); n != nil && !n.Leads() {
			return v
		}
	}
	return nil
}

// restartBehind crashes an edge whose nearest voter has fallen behind what the edge's users have seen, and lets them go on
// reading there.
func (w *world) restartBehind(ctx context.Context, user *client) {
	v := w.follower(user.rng)
	if v == nil {
		return
	}
	var near []*machine
	for _, m := range w.only(certs.RoleEdge) {
		if m.region == v.region && m.running() != nil {
			near = append(near, m)
		}
	}
	if len(near) == 0 {
		return
	}
	edge := near[user.rng.IntN(len(near))]
	w.log.Info("fault: a restart behind a late voter", "node", edge.name, "voter", v.name)
	w.cutFromVoters(v, true)
	defer w.cutFromVoters(v, false)
	visit := func(k api.Consistency) {
		if n := edge.running(); n != nil {
			op, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			user.ask(op, edge, n, keyName(0), time.Hour, k)
		}
	}
	for range 10 {
		w.pause(200 * time.Millisecond)
		visit(api.Consistency{Strong: true})
	}
	w.crash(edge)
	w.pause(200 * time.Millisecond)
	w.reboot(edge)
	for range 30 {
		w.pause(50 * time.Millisecond)
		visit(api.Consistency{})
	}
}
