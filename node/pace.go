package node

import (
	"context"
	"time"
)

// pacer makes a transfer of large values give way. Sealing, checking and copying them is work for the processor as fast as
// the network allows; on a machine that has too few processors for that, Raft's heartbeats would wait their turn behind it
// until somebody elects another leader. So after each paceBytes the transfer sleeps for a moment and looks how late it wakes
// up: the later, the longer it stays out of the way. A machine that is not short of processors is not slowed down.
type pacer struct{ moved int }

const (
	paceBytes = 1 << 20
	// paceProbe is the sleep that is measured.
	paceProbe = time.Millisecond
	// Waking up paceLate late is nothing; beyond it the transfer pauses for paceFactor times as long, at most paceLimit.
	paceLate   = 4 * time.Millisecond
	paceFactor = 4
	paceLimit  = 250 * time.Millisecond
)

// after is called when n more bytes have been moved. It returns at once when ctx ends.
func (p *pacer) after(ctx context.Context, n int) {
	if p.moved += n; p.moved < paceBytes {
		return
	}
	p.moved = 0
	began := time.Now()
	pause(ctx, paceProbe)
	if late := time.Since(began) - paceProbe; late > paceLate {
		pause(ctx, min(paceFactor*late, paceLimit))
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
