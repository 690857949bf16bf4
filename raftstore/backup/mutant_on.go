//go:build mutants

package backup

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants", which some test must notice
// (scripts/mutants.sh).
var mutPartUnbound = mutating("backup-part-unbound") // a part is not bound to its place

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
