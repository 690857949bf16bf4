//go:build !mutants

package cli

// The deliberate faults of mutant_on.go, which no program has.
const (
	mutMarkAhead     = false
	mutKeepTail      = false
	mutForgetFailed  = false
	mutOvertake      = false
	mutListedOnly    = false
	mutEscapedCopies = false
)
