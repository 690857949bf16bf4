//go:build !mutants

package node

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutVoterNoW           = false
	mutVoterAgeZero       = false
	mutProofAgeZero       = false
	mutProofNoW           = false
	mutProbeAtArrival     = false
	mutTxnNotShown        = false
	mutBulkUnordered      = false
	mutWriteBehindEpoch   = false
	mutReadIndexUnapplied = false
	mutReadIndexShared    = false
	mutVoteAtOnce         = false
	mutForgetUnknown      = false
)
