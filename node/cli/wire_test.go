package cli

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A node whose disk hangs while it stops ends all the same: a supervisor waits for it.
func TestStopEnds(t *testing.T) {
	broken := errors.New("the disk of the log hangs")
	for name, test := range map[string]struct {
		orderly func(context.Context) error
		failed  error // told meanwhile
		want    error // nil: any, when late
		within  time.Duration
		ok      bool
	}{
		"in order":                {orderly: func(context.Context) error { return nil }, ok: true},
		"with an error":           {orderly: func(context.Context) error { return broken }, want: broken},
		"when its time is over":   {orderly: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, want: context.DeadlineExceeded, within: stopTimeout},
		"cannot go on":            {orderly: never, failed: broken, want: broken},
		"never, and is not heard": {orderly: never, within: stopTimeout + stopGrace},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				quit := make(chan struct{})
				defer close(quit)
				failed := make(chan error, 1)
				if test.failed != nil {
					failed <- test.failed
				}
				begun := time.Now()
				err := stop(t.Context(), func(ctx context.Context) error {
					return test.orderly(context.WithValue(ctx, quitKey{}, quit))
				}, failed)
				if (err == nil) != test.ok || test.want != nil && !errors.Is(err, test.want) || time.Since(begun) != test.within {
					t.Errorf("after %v: %v", time.Since(begun), err)
				}
			})
		})
	}
}

type quitKey struct{}

// never returns before the end of the test.
func never(ctx context.Context) error {
	<-ctx.Value(quitKey{}).(chan struct{})
	return nil
}
