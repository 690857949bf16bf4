//go:build race

package sim

// dear divides what is done many times: the race detector makes it ten times as slow.
const dear = 5
