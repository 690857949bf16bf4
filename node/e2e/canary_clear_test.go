//go:build sealidentity

package e2e

// inClear says whether this build keeps values and metadata as they are: it shows that TestCanaries can fail.
const inClear = true
