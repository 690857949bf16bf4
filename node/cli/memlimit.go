package cli

import (
	"log/slog"

	"kvmesh/config"
)

// What a node needs beside its cache when it is busy: 8,192 connections with their buffers, the ring of recent records,
// bodies under way, and on a voter the store with its memory tables and the writes that wait for the log.
const (
	edgeMemory  = 512 * config.MiB
	voterMemory = 1 * config.GiB
)

// memoryLimit is the soft limit of the garbage collector (GOMEMLIMIT) that suits a node, and false when there is none. Without
// a limit the collector lets garbage grow to the size of what lives, so a full cache takes twice its size. With this one the
// cache is at most 60 % of the memory, the rest left to what else there is and to garbage. It stays below nine tenths of the
// machine's memory; where that is so little that the collector would run all the time, none is better.
func memoryLimit(cache config.Size, role config.Role, machine config.Size) (config.Size, bool) {
	beside := voterMemory
	if role == config.RoleEdge {
		beside = edgeMemory
	}
	limit := min(cache/3*5+beside, machine/10*9)
	return limit, limit >= cache/4*5+beside/2
}

// limitMemory sets the collector's limit, unless the user has set it, or GOGC. env looks an environment variable up.
func limitMemory(log *slog.Logger, env func(string) (string, bool), c config.Config, machine config.Size, set func(int64) int64) {
	for _, name := range []string{"GOMEMLIMIT", "GOGC"} {
		if v, ok := env(name); ok && v != "" {
			log.Info("the garbage collector is left to the environment", name, v)
			return
		}
	}
	limit, ok := memoryLimit(c.Cache.Size, c.Node.Role, machine)
	if !ok {
		log.Warn("the cache leaves little of the memory to everything else, so the garbage collector has no limit; use a smaller "+
			"--cache-size, or set GOMEMLIMIT", "cache_size", c.Cache.Size.String(), "memory", machine.String())
		return
	}
	set(int64(limit))
	log.Info("the garbage collector has a soft limit", "limit_mib", int64(limit/config.MiB), "cache_size", c.Cache.Size.String(),
		"memory_mib", int64(machine/config.MiB))
}
