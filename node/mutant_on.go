//go:build mutants

package node

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test must go red (scripts/mutants.sh).
var (
	mutVoterNoW           = mutating("voter-no-w")           // a voter's answer does not wait for the W that belongs to its F
	mutVoterAgeZero       = mutating("voter-age-zero")       // a voter's answer counts as current
	mutProofAgeZero       = mutating("proof-age-zero")       // a relayed proof counts as the leader's own
	mutProofNoW           = mutating("proof-no-w")           // a relayed proof says nothing about W
	mutProbeAtArrival     = mutating("probe-at-arrival")     // F is when the answer arrived
	mutTxnNotShown        = mutating("txn-not-shown")        // I7: what a condition has met is told and not noted
	mutBulkUnordered      = mutating("bulk-unordered")       // writes of one key overtake each other
	mutWriteBehindEpoch   = mutating("write-behind-epoch")   // a leader of superseded voters takes writes
	mutReadIndexUnapplied = mutating("read-index-unapplied") // a strong read does not wait for the revision that the leader has confirmed
	mutReadIndexShared    = mutating("read-index-shared")    // a strong read shares a question that was sent before it
	mutVoteAtOnce         = mutating("vote-at-once")         // a new voter gets its vote before it is stable and has its large values
	mutForgetUnknown      = mutating("forget-unknown")       // a restore whose end may still come is called undone
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
