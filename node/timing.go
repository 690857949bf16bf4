package node

import (
	"context"
	"time"

	"kvmesh/cache"
	"kvmesh/node/api"
)

// getTimed is the cache's Get for a client that asks where the time goes; t may be nil.
func (s *service) getTimed(ctx context.Context, rd cache.Read, t *api.Timing) (cache.Answer, error) {
	if t == nil {
		return s.cache.Get(ctx, rd)
	}
	var waited time.Duration
	rd.Waited = &waited
	began := time.Now()
	ans, err := s.cache.Get(ctx, rd)
	looked, found := max(time.Since(began)-waited, 0), string(ans.Tier)
	held := err == nil && (ans.Tier == cache.TierHit || ans.Tier == cache.TierStale)
	switch {
	case rd.Strong:
		found = "passed" // nobody looks at what is held
	case !held:
		found = "miss"
	}
	t.Add(api.TimingCache, found, looked)
	if !held || waited > 0 {
		by := string(ans.Tier)
		if err != nil || ans.Reason != "" {
			by = "failed"
		}
		t.Add(api.TimingFill, by, waited)
	}
	return ans, err
}
