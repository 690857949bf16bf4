//go:build !mutants

package state

// Without the tag "mutants" the flags are constants, and what stands behind them is not compiled.
const mutTxnHalf = false
