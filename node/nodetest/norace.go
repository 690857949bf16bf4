//go:build !race

package nodetest

var raceFlags []string
