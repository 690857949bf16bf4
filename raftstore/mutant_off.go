//go:build !mutants

package raftstore

import "kvmesh/raftstore/state"

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutConfirmUnapplied  = false
	mutConfirmUnverified = false
	mutConfirmEarlyAcks  = false
	mutReuseReadIndex    = false
	mutLoseWrite         = false
	mutSkipLogSync       = false
	mutKeepCut           = false
	mutMixLineages       = false
	mutRemoveBlindly     = false
	mutKeepCovered       = false
	mutNoticeBeyond      = false
)

type mutant struct{}

func (*mutant) begun(*round) {}

func (*mutant) running() *round { return nil }

func loseWrites([]state.Entry) {}
