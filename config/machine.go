package config

import (
	"os"
	"strconv"
	"strings"
)

// Machine is what derived defaults depend on.
type Machine struct {
	Hostname string
	// Memory that the process may use.
	Memory Size
}

// fallbackMemory stands in where the system does not say how much memory there is.
const fallbackMemory = 1 * GiB

// ThisMachine asks the system. The memory is that of the machine, or of the control group when that allows less, as in a
// container.
func ThisMachine() Machine {
	m := Machine{Hostname: "kvmesh", Memory: fallbackMemory}
	if h, err := os.Hostname(); err == nil && h != "" {
		m.Hostname = h
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		if total, ok := parseMeminfo(string(b)); ok {
			m.Memory = total
		}
	}
	if b, err := os.ReadFile("/sys/fs/cgroup/memory.max"); err == nil {
		// "max" means no limit, and does not parse.
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && limit > 0 {
			m.Memory = min(m.Memory, Size(limit))
		}
	}
	return m
}

// parseMeminfo finds the line "MemTotal:  16384000 kB" of Linux's /proc/meminfo (proc(5); its kB are KiB).
func parseMeminfo(s string) (Size, bool) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" && f[2] == "kB" {
			n, err := strconv.ParseInt(f[1], 10, 53)
			return Size(n) * KiB, err == nil && n > 0
		}
	}
	return 0, false
}
