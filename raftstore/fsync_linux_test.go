package raftstore

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// failFsync lets every fsync of this process fail with errno from now on. There is no way back.
func failFsync(errno syscall.Errno) error {
	const (
		setModeFilter, syncThreads = 1, 1                   // SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC
		allow, refuse              = 0x7fff0000, 0x00050000 // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	)
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number of the system call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_FSYNC},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_FDATASYNC},
		{Code: unix.BPF_RET | unix.BPF_K, K: refuse | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	thread, _, e := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, syncThreads, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if thread != 0 || e != 0 {
		return fmt.Errorf("seccomp: thread %d, %w", thread, e)
	}
	return nil
}

// An append is acknowledged only when the disk has said that it is there. The system refuses every fsync here, which needs a
// process of its own: nothing of what was appended then may be taken for durable, a full disk is told from a broken one, and
// what was there before is there afterwards.
func TestFullDiskAtFsync(t *testing.T) {
	const dirVar, errnoVar = "KVMESH_TEST_FSYNC_DIR", "KVMESH_TEST_FSYNC_ERRNO"
	if dir := os.Getenv(dirVar); dir != "" {
		n, err := strconv.Atoi(os.Getenv(errnoVar))
		if err != nil {
			t.Fatal(err)
		}
		errno := syscall.Errno(n)
		l := openTestLog(t, dir)
		if err := failFsync(errno); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			err := l.StoreLogs([]*raft.Log{testEntry(11), testEntry(12)})
			if !errors.Is(err, errno) {
				t.Errorf("an append: %v, want %v", err, errno)
			}
			if err := l.DeleteRange(1, 3); !errors.Is(err, errno) {
				t.Errorf("a cut: %v, want %v", err, errno)
			}
			if err := l.SetUint64(termKey, 8); !errors.Is(err, errno) {
				t.Errorf("a term: %v, want %v", err, errno)
			}
		}
		return
	}
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EDQUOT} {
		dir := t.TempDir()
		l := openTestLog(t, dir)
		fill(t, l, 1, 10)
		closeLog(t, l)
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFullDiskAtFsync$")
		cmd.Env = append(os.Environ(), dirVar+"="+dir, fmt.Sprintf("%s=%d", errnoVar, uint(errno)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v\n%s", errno, err, out)
		}
		l = openTestLog(t, dir)
		first, err1 := l.FirstIndex()
		last, err2 := l.LastIndex()
		if first != 1 || last != 10 || errors.Join(err1, err2) != nil || len(l.audit.bad) > 0 {
			t.Errorf("%v: entries %d to %d afterwards, %v %v, %+v", errno, first, last, err1, err2, l.audit)
		}
		closeLog(t, l)
	}
}
