package raftstore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// allocate makes a file that takes size bytes of the disk. Where the file system cannot do that without writing them, and
// where it is full by now, there is none.
func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	if err = errors.Join(err, f.Close()); err == nil {
		return nil
	}
	gone := os.Remove(path)
	if errors.Is(err, unix.EOPNOTSUPP) || isFull(err) {
		err = nil
	}
	return errors.Join(err, gone)
}
