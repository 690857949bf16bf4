//go:build mutants

package cli

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one promise of transfers
// that go on after an interruption, and some test of this package must go red.
var (
	mutMarkAhead     = mutating("mark-ahead")     // the mark passes items that are still under way
	mutKeepTail      = mutating("keep-tail")      // what was written after the state was kept stays
	mutForgetFailed  = mutating("forget-failed")  // what failed is not tried again
	mutOvertake      = mutating("overtake")       // two values of one key overtake each other
	mutListedOnly    = mutating("listed-only")    // a file that an earlier run has lost is not written again
	mutEscapedCopies = mutating("escaped-copies") // the journal of a directory's manifest escapes metadata
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
