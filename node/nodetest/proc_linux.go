package nodetest

import "syscall"

// dieWithParent has the kernel end a child when this process ends without cleaning up, as after a test's timeout.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
