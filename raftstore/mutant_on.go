//go:build mutants

package raftstore

import (
	"os"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/state"
)

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test must go red (scripts/mutants.sh).
var (
	mutConfirmUnapplied  = mutating("confirm-unapplied")  // the state is not waited for
	mutConfirmUnverified = mutating("confirm-unverified") // who believes to lead says so at once
	mutConfirmEarlyAcks  = mutating("confirm-early-acks") // answers to requests count that were sent before
	mutReuseReadIndex    = mutating("reuse-read-index")   // who comes while a round is on its way takes that one
	mutLoseWrite         = mutating("lose-write")         // one acknowledged put in a hundred is not kept, on any voter
	mutSkipLogSync       = mutating("skip-log-sync")      // an append to the log is acknowledged before it is on the disk
	mutKeepCut           = mutating("keep-cut")           // after its end was cut, the log does not wait for space
	mutMixLineages       = mutating("mix-lineages")       // Raft speaks to logs of other generations
	mutRemoveBlindly     = mutating("remove-blindly")     // a removal does not ask whether a quorum remains
	mutKeepCovered       = mutating("keep-covered")       // the library sees requests about what a snapshot covers
	mutNoticeBeyond      = mutating("notice-beyond")      // a notice commits what it does not bring
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }

// mutant is what the fault "reuse-read-index" needs: the newest round that has begun. It is under the leadership's lock.
type mutant struct{ round *round }

func (m *mutant) begun(r *round) {
	if r != nil {
		m.round = r
	}
}

// running is that round, nil once it is over.
func (m *mutant) running() *round {
	if m.round == nil {
		return nil
	}
	select {
	case <-m.round.done:
		return nil
	default:
		return m.round
	}
}

// loseWrites is the fault "lose-write": it is acknowledged with a revision, as if it had been carried out.
func loseWrites(entries []state.Entry) {
	for i := range entries {
		if ops := entries[i].Batch.Ops; entries[i].Index%100 == 0 && len(ops) == 1 && ops[0].Kind == command.KindPut {
			ops[0] = command.Op{Kind: command.KindDelete, Namespace: ops[0].Namespace, Key: ops[0].Key, Cond: ops[0].Cond}
		}
	}
}
