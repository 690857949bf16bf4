//go:build mutants

package cfbind

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one promise of the
// binding, and some test must go red (scripts/mutants.sh).
var (
	mutLostNamespace = mutating("binding-lost-namespace") // an unknown namespace looks like an empty one
	mutNoDrain       = mutating("binding-no-drain")       // a refused upload is not read to its end
	mutNoAgeLimit    = mutating("binding-no-age-limit")   // cache_ttl is checked and not kept
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
