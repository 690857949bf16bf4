//go:build mutants

package hitpath

import "os"

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants". The first five let a request pass
// that net/http treats otherwise, and FuzzDifferential must find them.
var (
	mutBareLF        = mutating("bare-lf")        // a line feed without a carriage return is part of a line
	mutFolded        = mutating("folded")         // a line that goes on with the one before is passed over
	mutTwoHosts      = mutating("two-hosts")      // a request may name two hosts
	mutSpaceColon    = mutating("space-colon")    // a header's name may be followed by spaces
	mutContentLength = mutating("content-length") // the body that a GET announces is taken for the next request

	mutLatePreface = mutating("late-preface")      // HTTP/2 begins after a request, too
	mutHandshake   = mutating("endless-handshake") // nobody ends a handshake that is not made
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }
