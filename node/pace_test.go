package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// A transfer gives way once a MiB, for a moment only where time is not short, and not at all once it is given up.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pacer
		start := time.Now()
		for range 25 << 2 {
			p.after(t.Context(), 256<<10)
		}
		if took := time.Since(start); took != 25*paceProbe {
			t.Errorf("25 MiB on an idle machine waited %v", took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start = time.Now()
		p.after(ctx, paceBytes)
		if took := time.Since(start); took != 0 {
			t.Errorf("given up, it waited %v", took)
		}
	})
}
