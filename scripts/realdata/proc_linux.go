package main

import "syscall"

// dieWithParent makes a node end when this program is killed and can no longer end it.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
