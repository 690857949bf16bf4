//go:build mutants

package blob

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test must go red (scripts/mutants.sh).
var mutNoFsync = mutating("blob-no-fsync") // a blob is acknowledged before it is on disk

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
