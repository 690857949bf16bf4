package bench

import (
	"context"
	"time"
)

// pace sends the moments at which requests are due, each when it has come, until end or ctx's end. While nobody is free to
// take one it waits: that request is late, and its latency says so.
func pace(ctx context.Context, wait waiter, start, end time.Time, rate float64) <-chan time.Time {
	due := make(chan time.Time)
	go func() {
		defer close(due)
		for i := 0; ; i++ {
			at := start.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			if !at.Before(end) || !wait(ctx, at) {
				return
			}
			select {
			case due <- at:
			case <-ctx.Done():
				return
			}
		}
	}()
	return due
}

// waiter reports whether at comes before ctx ends, and returns then.
type waiter func(ctx context.Context, at time.Time) bool

// timer waits with a timer of the Go runtime, which rounds a wait of an idle process up to a whole millisecond.
func timer(ctx context.Context, at time.Time) bool {
	d := time.Until(at)
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
