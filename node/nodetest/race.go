//go:build race

package nodetest

// raceFlags builds the program with the race detector, as this test was built.
var raceFlags = []string{"-race"}

// Race says whether this test, and so the program that Build makes, has the race detector.
const Race = true
