package node

import (
	"math"
	"testing"
)

// TestConnLimits: what few descriptors there are is not the clients' alone.
func TestConnLimits(t *testing.T) {
	for _, tc := range []struct {
		files         uint64
		public, admin int
	}{
		{0, maxHTTPConns, maxHTTPConns},
		{math.MaxUint64, maxHTTPConns, maxHTTPConns},
		{1 << 20, maxHTTPConns, maxHTTPConns},
		{20000, 15000, 1250},
		{1024, 768, 64},
		{4, minHTTPConns, minHTTPConns},
	} {
		if public, admin := connLimits(tc.files); public != tc.public || admin != tc.admin {
			t.Errorf("%d descriptors: %d and %d connections, want %d and %d", tc.files, public, admin, tc.public, tc.admin)
		}
	}
}
