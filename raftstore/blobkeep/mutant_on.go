//go:build mutants

package blobkeep

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test must go red (scripts/mutants.sh).
var mutSweepNamed = mutating("sweep-named-blob") // whether the state names a blob does not matter to the sweep

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
