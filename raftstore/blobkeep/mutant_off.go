//go:build !mutants

package blobkeep

// The deliberate faults of the mutation tests (mutant_on.go). As constants they vanish from every other binary.
const mutSweepNamed = false
