//go:build !mutants

package state

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutTxnHalf         = false
	mutApplyTwice      = false
	mutForgetApplied   = false
	mutRestoreHalf     = false
	mutRestoreOverData = false
	mutRestoreOldEpoch = false
)
