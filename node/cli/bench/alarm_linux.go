package bench

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// newWaiter is a waiter that is exact to the precision of the kernel's timers: it sleeps in the network poller, on a timerfd.
func newWaiter() (wait waiter, stop func()) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return timer, func() {}
	}
	alarm := os.NewFile(uintptr(fd), "timerfd")
	wait = func(ctx context.Context, at time.Time) bool {
		d := time.Until(at)
		if d <= 0 {
			return ctx.Err() == nil
		}
		if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(d.Nanoseconds())}, nil); err != nil {
			return timer(ctx, at)
		}
		var expirations [8]byte
		undo := context.AfterFunc(ctx, func() { _ = alarm.SetReadDeadline(time.Unix(1, 0)) }) // wakes the read below
		defer undo()
		_, err := alarm.Read(expirations[:])
		return err == nil && ctx.Err() == nil
	}
	return wait, func() { _ = alarm.Close() } // it was only read
}
