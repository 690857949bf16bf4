//go:build !race

package nodetest

var raceFlags []string

// Race says whether this test, and so the program that Build makes, has the race detector.
const Race = false
