//go:build mutants

package state

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants", and some test must go red
// (scripts/mutants.sh).
var (
	mutTxnHalf         = mutating("txn-half")          // a transaction carries out what it can, whatever the others say
	mutRestoreHalf     = mutating("restore-half")      // a restore is committed although chunks are missing
	mutRestoreOverData = mutating("restore-over-data") // a restore replaces data without being allowed to
	mutRestoreOldEpoch = mutating("restore-old-epoch") // what was restored goes on in the history that was replaced
	mutApplyTwice      = mutating("apply-twice")       // entries that were applied before are applied again
	mutForgetApplied   = mutating("forget-applied")    // the data are written, and not up to which entry they go now
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
