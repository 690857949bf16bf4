//go:build mutants

package cache

import (
	"os"
	"runtime"
	"time"

	"kvmesh/raftstore/kv"
)

// One deliberate fault, chosen by KVMESH_MUTANT in a binary built with the tag "mutants": each breaks one rule of
// DESIGN.md, and some test of this package must go red.
var (
	mutWBeforeMark          = mutating("w-before-mark")          // I2: W is published before the keys are marked
	mutFBeforeMark          = mutating("f-before-mark")          // I2: F is published before the keys are marked
	mutFWithoutW            = mutating("f-without-w")            // a proof counts before W has reached its R
	mutIgnoreAsOf           = mutating("ignore-asof")            // I3: whatever arrives replaces what is held
	mutLateUnmarked         = mutating("late-unmarked")          // I3: what hit the registration is ignored
	mutCompareRevision      = mutating("compare-revision")       // I3: Revision is compared instead of AsOf
	mutRegisterAfterS       = mutating("register-after-s")       // I3: the fill registers after it has read S
	mutNoHeldAsOf           = mutating("no-held-asof")           // I3: r leaves out the held entry's AsOf
	mutOwnerIgnoresR        = mutating("owner-ignores-r")        // I3: the owner answers with whatever it holds
	mutJoinerIgnoresR       = mutating("joiner-ignores-r")       // a joiner takes any revision
	mutJoinerIgnoresLimit   = mutating("joiner-ignores-limit")   // a joiner takes any age
	mutHintAdvancesW        = mutating("hint-advances-w")        // a hint counts as the feed
	mutDropRecords          = mutating("drop-records")           // one record in a hundred marks nothing
	mutNoFreeze             = mutating("no-freeze")              // marked entries go on profiting from F
	mutProvenAtArrival      = mutating("proven-at-arrival")      // an answer counts as current when it arrives
	mutWBack                = mutating("w-back")                 // I5: an old record sets W back
	mutNoEpochFloor         = mutating("no-epoch-floor")         // I5: entries of a superseded epoch stay good
	mutForgetP              = mutating("forget-p")               // I7: P(key) is never noted
	mutNoRestartLeast       = mutating("no-restart-least")       // I7: a restarted node serves at once
	mutUnprovenIgnoresLeast = mutating("unproven-ignores-least") // the own store's state counts for any bookmark
)

func mutating(name string) bool { return os.Getenv("KVMESH_MUTANT") == name }

// mutant is the state that the fault "f-before-mark" needs: the proofs that wait for W.
type mutant struct {
	waiting []struct {
		rev kv.Revision
		at  Mono
	}
}

// linger lets everybody else go first who can, because the goroutine that is in a race's window can lose its processor.
func (*mutant) linger() {
	for range 1000 {
		runtime.Gosched()
	}
}

// stall is linger where no lock is held: it takes time.
func (*mutant) stall() { time.Sleep(20 * time.Millisecond) }

func (m *mutant) wait(rev kv.Revision, at Mono) {
	m.waiting = append(m.waiting, struct {
		rev kv.Revision
		at  Mono
	}{rev, at})
}

// early is the latest waiting proof that a record up to rev would let through.
func (m *mutant) early(rev kv.Revision) Mono {
	at := void
	for _, p := range m.waiting {
		if p.rev <= rev {
			at = max(at, p.at)
		}
	}
	return at
}
