package cli

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"kvmesh/config"
)

// TestMemoryLimit: the cache is at most 60 % of the limit, the limit below the machine's memory, and where that leaves the
// collector nothing there is no limit.
func TestMemoryLimit(t *testing.T) {
	const MiB, GiB = config.MiB, config.GiB
	for _, tc := range []struct {
		cache   config.Size
		role    config.Role
		machine config.Size
		want    config.Size // 0 = none
	}{
		{3 * GiB, config.RoleEdge, 16 * GiB, 5*GiB + edgeMemory},
		{3 * GiB, config.RoleVoter, 16 * GiB, 5*GiB + voterMemory},
		{3 * GiB, config.RoleLearner, 16 * GiB, 5*GiB + voterMemory},
		{4 * GiB, config.RoleEdge, 6 * GiB, 6 * GiB / 10 * 9}, // the machine has less
		{4 * GiB, config.RoleEdge, 5 * GiB, 0},
		{8 * GiB, config.RoleEdge, 8 * GiB, 0},
		{8 * MiB, config.RoleEdge, 100 * MiB, 0},
	} {
		limit, ok := memoryLimit(tc.cache, tc.role, tc.machine)
		if ok != (tc.want > 0) || (ok && (limit < tc.want-MiB || limit > tc.want)) {
			t.Errorf("%s of %s with %s: %s, %v; want %s", tc.cache, tc.machine, tc.role, limit, ok, tc.want)
		}
	}
	for machine := 512 * MiB; machine <= 256*GiB; machine *= 2 { // what is chosen without --cache-size
		c := config.DefaultOn(config.Machine{Memory: machine})
		for _, role := range []config.Role{config.RoleEdge, config.RoleVoter} {
			limit, ok := memoryLimit(c.Cache.Size, role, machine)
			if machine >= GiB && (!ok || limit > machine || limit < c.Cache.Size/4*5) {
				t.Errorf("%s: a %s with a cache of %s has the limit %s, %v", machine, role, c.Cache.Size, limit, ok)
			}
		}
	}
}

// TestLimitMemory: what the user says comes first.
func TestLimitMemory(t *testing.T) {
	for _, tc := range []struct {
		env     map[string]string
		machine config.Size
		set     bool
		log     string
	}{
		{nil, 16 * config.GiB, true, "soft limit"},
		{map[string]string{"GOMEMLIMIT": ""}, 16 * config.GiB, true, "soft limit"},
		{map[string]string{"GOMEMLIMIT": "1GiB"}, 16 * config.GiB, false, "environment"},
		{map[string]string{"GOGC": "50"}, 16 * config.GiB, false, "environment"},
		{nil, 1 * config.GiB, false, "--cache-size"},
	} {
		var log bytes.Buffer
		var c config.Config
		c.Cache.Size, c.Node.Role = config.GiB, config.RoleEdge
		set := false
		limitMemory(slog.New(slog.NewTextHandler(&log, nil)), func(name string) (string, bool) { v, ok := tc.env[name]; return v, ok },
			c, tc.machine, func(int64) int64 { set = true; return 0 })
		if set != tc.set || !strings.Contains(log.String(), tc.log) {
			t.Errorf("%v: set: %v, logged %q", tc.env, set, log.String())
		}
	}
}
