//go:build !mutants

package cache

import "kvmesh/raftstore/kv"

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutWBeforeMark          = false
	mutFBeforeMark          = false
	mutFWithoutW            = false
	mutIgnoreAsOf           = false
	mutLateUnmarked         = false
	mutCompareRevision      = false
	mutRegisterAfterS       = false
	mutNoHeldAsOf           = false
	mutOwnerIgnoresR        = false
	mutJoinerIgnoresR       = false
	mutJoinerIgnoresLimit   = false
	mutHintAdvancesW        = false
	mutDropRecords          = false
	mutNoFreeze             = false
	mutProvenAtArrival      = false
	mutWBack                = false
	mutNoEpochFloor         = false
	mutForgetP              = false
	mutNoRestartLeast       = false
	mutUnprovenIgnoresLeast = false
)

type mutant struct{}

func (*mutant) linger() {}

func (*mutant) stall() {}

func (*mutant) wait(kv.Revision, Mono) {}

func (*mutant) early(kv.Revision) Mono { return void }
