//go:build !unix

package node

// maxFiles is how many descriptors this process may have open; 0 = that is not known.
func maxFiles() uint64 { return 0 }
