//go:build !linux

package main

import "syscall"

// dieWithParent would make a node end with this program; only Linux offers that.
func dieWithParent() *syscall.SysProcAttr { return nil }
