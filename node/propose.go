package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"kvmesh/node/peer"
	"kvmesh/raftstore"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// maxSealedBlob is the size of the largest value, sealed.
var maxSealedBlob = seal.SealedSize(kv.MaxValueBytes)

// proposer brings operations to the leader, wherever it is and while it changes.
type proposer struct {
	self  string
	dir   *directory
	store *raftstore.Store // nil on edges
	epoch func() kv.Epoch  // the newest that this node knows
	// forward brings them there when another node leads.
	forward *forwarder
	limits  writeLimits
}

// writeLimits is how long a write may take.
type writeLimits struct {
	whole  time.Duration // over all attempts
	leader time.Duration // waiting for a leader while a majority of the voters is alive
}

func (o *Options) writeLimits() writeLimits {
	if o.Patient {
		return writeLimits{whole: time.Minute, leader: 30 * time.Second}
	}
	return writeLimits{whole: 10 * time.Second, leader: 5 * time.Second}
}

// leaderPoll is how often a waiting write looks for a leader that nobody announced.
const leaderPoll = 100 * time.Millisecond

// propose commits ops as one batch. Errors: CodeNoLeader, CodeNoQuorum and CodeOverloaded say that nothing happened;
// CodeOutcomeUnknown says that the operations may have been, or may still be, carried out.
func (p *proposer) propose(ctx context.Context, ops []command.Op) (command.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, p.limits.whole)
	defer cancel()
	giveUp := time.NewTimer(p.limits.leader)
	defer giveUp.Stop()
	var last error
	for {
		leader, changed := p.dir.Leader()
		if leader == "" {
			leader = p.anyVoter()
		}
		if !p.dir.reachable(leader) { // asking it would take until the connection times out
			if err := p.noQuorum(); err != nil {
				return command.Result{}, err
			}
		}
		if leader != "" {
			res, err := p.try(ctx, leader, ops)
			if err == nil {
				return res, nil
			}
			if retry := retryable(err); !retry {
				return res, err
			}
			noteNotLeader(p.dir, leader, err)
			last = err
			if now, _ := p.dir.Leader(); now != "" && now != leader {
				if ctx.Err() == nil {
					continue // whoever was asked knows better
				}
			}
		}
		if err := p.noQuorum(); err != nil {
			return command.Result{}, err
		}
		select {
		case <-changed:
		case <-time.After(leaderPoll):
		case <-giveUp.C:
			return command.Result{}, noLeader(last)
		case <-ctx.Done():
			return command.Result{}, noLeader(last)
		}
	}
}

// noQuorum is the error when gossip believes that too few voters live for any write; else nil.
func (p *proposer) noQuorum() error {
	alive, of, ok := p.dir.QuorumAlive()
	if ok {
		return nil
	}
	return &kv.Error{
		Code: kv.CodeNoQuorum, RetryAfter: time.Second,
		Message: fmt.Sprintf("%d of %d voters are reachable, %d are needed for a write; retry when more are back", alive, of, of/2+1),
	}
}

func noLeader(last error) error {
	msg := "the mesh has no leader just now; retry"
	if last != nil {
		msg += ": " + last.Error()
	}
	return &kv.Error{Code: kv.CodeNoLeader, RetryAfter: time.Second, Message: msg}
}

// anyVoter is whom to ask when no leader is known: it will say who leads.
func (p *proposer) anyVoter() string {
	if p.store != nil {
		return "" // the own Raft knows as soon as anybody does
	}
	if voters := p.dir.Voters(); len(voters) > 0 {
		return voters[int(time.Now().UnixNano()/int64(leaderPoll))%len(voters)]
	}
	return ""
}

// try proposes at one node.
func (p *proposer) try(ctx context.Context, leader string, ops []command.Op) (command.Result, error) {
	if leader == p.self && p.store != nil {
		if err := behindEpoch(p.store, p.epoch()); err != nil {
			return command.Result{}, err
		}
		return p.store.Propose(ctx, ops)
	}
	res, err := p.forward.propose(ctx, leader, ops)
	if err != nil {
		p.dir.doubt(leader, err)
		if call := new(peer.CallError); errors.As(err, &call) && call.MaybeSent {
			return command.Result{}, kv.Errorf(kv.CodeOutcomeUnknown,
				"the connection to the leader broke while the write was under way; read the key to see whether it is there (%v)", err)
		}
	}
	return res, err
}

// retryable reports whether err says that nothing happened and another node, or the same one later, may do it.
func retryable(err error) bool {
	if call := new(peer.CallError); errors.As(err, &call) {
		return true // it was not received: try has sorted out the others
	}
	e := asKVError(err)
	if e == nil {
		return false
	}
	return e.Code == kv.CodeNotLeader || e.Code == kv.CodeNoLeader
}

// behindEpoch refuses a write at a leader that is behind the epoch that the asker knows of. A leader of the mesh never is:
// epochs become known once they are committed. This one leads voters that the mesh was recovered without, and what it
// acknowledged would be lost.
func behindEpoch(store *raftstore.Store, known kv.Epoch) error {
	if _, leads := store.Leader(); leads && known.Compare(store.State().Applied().Epoch) > 0 && !mutWriteBehindEpoch {
		return kv.Errorf(kv.CodeNotLeader, "this node leads in an epoch that has been superseded")
	}
	return nil
}
