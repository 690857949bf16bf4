//go:build !race

package sim

const dear = 1
