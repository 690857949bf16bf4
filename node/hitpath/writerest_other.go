//go:build !unix

package hitpath

// restWriter is of systems that tell how a write proceeds.
type restWriter struct{}

// writeRest reports false: here a value is written piece by piece.
func (c *conn) writeRest([]byte) (done bool, err error) { return false, nil }
