//go:build !linux

package nodetest

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
