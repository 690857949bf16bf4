//go:build mutants

package raftstore

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test must go red (scripts/mutants.sh).
var (
	mutConfirmUnapplied  = mutating("confirm-unapplied")  // the state is not waited for
	mutConfirmUnverified = mutating("confirm-unverified") // who believes to lead says so at once
	mutConfirmEarlyAcks  = mutating("confirm-early-acks") // answers to requests count that were sent before
	mutReuseReadIndex    = mutating("reuse-read-index")   // who comes while a round is on its way takes that one
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
