//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// spaces is a network of kernel namespaces: this program has moved into one with a bridge in it, and every slot is one of
// its own that hangs on the bridge by a pair of virtual interfaces. Nothing of it is visible outside, and nothing of it is
// left once the processes have ended.
type spaces struct {
	holders map[int]*exec.Cmd // each keeps a namespace alive while the node in it is down
	cuts    []func() error    // what undoes the cuts
}

const (
	spaceBridge = "nemesis0"
	spacePrefix = "10.77.0."
	// nowhere is a link address that no interface has.
	nowhere = "02:00:00:00:de:ad"
)

// newSpaces lays the bridge. It must be called in a network namespace of this program's own; see enter.
func newSpaces() (*spaces, error) {
	for _, args := range []string{
		"link set lo up",
		"link add " + spaceBridge + " type bridge",
		"addr add " + spacePrefix + "1/24 dev " + spaceBridge,
		"link set " + spaceBridge + " up",
	} {
		if err := ip(args); err != nil {
			return nil, err
		}
	}
	return &spaces{holders: make(map[int]*exec.Cmd)}, nil
}

// ip runs iproute2.
func ip(args string) error { return run(exec.Command("ip", strings.Fields(args)...)) }

// run runs a command and puts what it says into the error.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (s *spaces) describe() string {
	return "network namespaces (veth pairs on a bridge: links down, blackhole routes, one-way drops)"
}

func (s *spaces) join(i int) error {
	if s.holders[i] != nil {
		return nil
	}
	h := exec.Command("sleep", "infinity")
	h.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := h.Start(); err != nil {
		return fmt.Errorf("a network namespace for slot %d: %w", i, err)
	}
	s.holders[i] = h
	port := "nem" + strconv.Itoa(i)
	for _, args := range []string{
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", port, h.Process.Pid),
		fmt.Sprintf("link set %s master %s up", port, spaceBridge),
	} {
		if err := ip(args); err != nil {
			return err
		}
	}
	for _, args := range []string{
		"link set lo up",
		"addr add " + s.listen(i) + "/24 dev eth0",
		"link set eth0 up",
	} {
		if err := s.inside(i, args); err != nil {
			return err
		}
	}
	return nil
}

// inside runs iproute2 in the namespace of a slot.
func (s *spaces) inside(i int, args string) error {
	return run(s.command(i, "ip", strings.Fields(args)...))
}

func (s *spaces) listen(i int) string    { return spacePrefix + strconv.Itoa(10+i) }
func (s *spaces) advertise(i int) string { return s.listen(i) }
func (s *spaces) started(int, int)       {}

// command enters the slot's namespace and becomes the program, under the same process id.
func (s *spaces) command(i int, name string, args ...string) *exec.Cmd {
	file := fmt.Sprintf("--net=/proc/%d/ns/net", s.holders[i].Process.Pid)
	return exec.Command("nsenter", append([]string{file, "--", name}, args...)...)
}

func (s *spaces) cut(from, to int, route bool) error {
	if route {
		s.cuts = append(s.cuts, func() error { return s.inside(from, "route del blackhole "+s.listen(to)+"/32") })
		return s.inside(from, "route replace blackhole "+s.listen(to)+"/32")
	}
	// Whatever is sent goes to an interface that is not there; the other direction works.
	s.cuts = append(s.cuts, func() error { return s.inside(from, "neigh del "+s.listen(to)+" dev eth0") })
	return s.inside(from, fmt.Sprintf("neigh replace %s lladdr %s dev eth0 nud permanent", s.listen(to), nowhere))
}

func (s *spaces) unplug(i int) error {
	port := "nem" + strconv.Itoa(i)
	s.cuts = append(s.cuts, func() error { return ip("link set " + port + " up") })
	return ip("link set " + port + " down")
}

func (s *spaces) mend() error {
	var errs []error
	for _, undo := range s.cuts {
		errs = append(errs, undo())
	}
	s.cuts = nil
	return errors.Join(errs...)
}

func (s *spaces) close() error {
	var errs []error
	for _, h := range s.holders {
		if err := h.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
			continue
		}
		_ = h.Wait() // killed by the line above
	}
	return errors.Join(errs...)
}

// enter runs this program again in namespaces of its own, and passes signals on. It returns what that run's exit status
// says.
func enter(inner string, args []string, signals <-chan os.Signal) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), innerEnv+"="+inner)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
		Setpgid: true, // a terminal's Ctrl-C reaches it once only, through this process
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for {
		select {
		case sig := <-signals:
			_ = cmd.Process.Signal(sig) // it may have just ended, which the next turn sees
		case err := <-exited:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return exit.ExitCode(), nil
			}
			return 0, err
		}
	}
}
