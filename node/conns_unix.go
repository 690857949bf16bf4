//go:build unix

package node

import "syscall"

// maxFiles is how many descriptors this process may have open; 0 = that is not known.
func maxFiles() uint64 {
	var l syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l) != nil {
		return 0
	}
	return uint64(l.Cur)
}
