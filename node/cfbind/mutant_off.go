//go:build !mutants

package cfbind

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const (
	mutLostNamespace = false
	mutNoDrain       = false
	mutNoAgeLimit    = false
)
