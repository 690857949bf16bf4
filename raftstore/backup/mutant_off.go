//go:build !mutants

package backup

// The deliberate fault of the mutation tests (mutant_on.go). As a constant it vanishes from every other binary.
const mutPartUnbound = false
