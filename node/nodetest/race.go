//go:build race

package nodetest

// raceFlags builds the program with the race detector, as this test was built.
var raceFlags = []string{"-race"}
