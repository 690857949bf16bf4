//go:build !mutants

package hitpath

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutBareLF        = false
	mutFolded        = false
	mutTwoHosts      = false
	mutSpaceColon    = false
	mutContentLength = false

	mutLatePreface = false
	mutHandshake   = false
)
