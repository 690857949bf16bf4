//go:build linux

package main

import "os/exec"

// network is what lies between the nodes. A slot is one machine's place in it; a node keeps its slot over all its lives.
// Cuts are silent, as cables are: nobody is told.
type network interface {
	// describe says what it is made of, for people.
	describe() string
	// join makes slot i ready for a node.
	join(i int) error
	// listen is the host that the node in slot i listens at, advertise the one by which the others reach it.
	listen(i int) string
	advertise(i int) string
	// command is a program that runs in slot i.
	command(i int, name string, args ...string) *exec.Cmd
	// started tells which process listens in slot i from now on.
	started(i, pid int)
	// cut drops everything on its way from one slot to another. route chooses another way to do it, where there is one:
	// the sender's system is told that there is no way, instead of nothing.
	cut(from, to int, route bool) error
	// unplug takes slot i off the network, for clients too where they are on it.
	unplug(i int) error
	// mend undoes every cut of every slot.
	mend() error
	close() error
}
