package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// TestInsist: an operation is sent again for as long as patience while the mesh takes none, and what may have been carried
// out once is never called undone because a later attempt certainly was not.
func TestInsist(t *testing.T) {
	unknown, no := kv.Errorf(kv.CodeOutcomeUnknown, "unknown"), kv.Errorf(kv.CodeNoLeader, "no leader")
	broken := errors.New("something else")
	for name, tc := range map[string]struct {
		answers []error // the last one again and again; nil = done
		want    kv.Code
		took    time.Duration // at least
	}{
		"at once":                     {[]error{nil}, "", 0},
		"after an election":           {[]error{no, no, unknown, no, nil}, "", 4 * restoreRetry},
		"never":                       {[]error{no}, kv.CodeNoLeader, time.Minute},
		"nobody knows":                {[]error{no, unknown}, kv.CodeOutcomeUnknown, time.Minute},
		"unknown, then no leader":     {[]error{no, unknown, no}, kv.CodeOutcomeUnknown, time.Minute},
		"unknown, then another error": {[]error{unknown, broken}, kv.CodeOutcomeUnknown, restoreRetry},
		"another error":               {[]error{no, broken}, kv.CodeInternal, restoreRetry},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, n := time.Now(), 0
				_, err := insist(t.Context(), time.Minute, func(context.Context) (command.Result, error) {
					err := tc.answers[min(n, len(tc.answers)-1)]
					n++
					return command.Result{}, err
				})
				took := time.Since(began)
				if kv.CodeOf(err) != tc.want || took < tc.took || took > tc.took+2*restoreRetry {
					t.Errorf("after %v and %d attempts: %v", took, n, err)
				}
			})
		})
	}
}

// TestInsistEnds: whoever ends it learns why, and that nobody knows, if nobody does.
func TestInsistEnds(t *testing.T) {
	why := errors.New("why")
	for _, tc := range []struct {
		answer error
		want   kv.Code
	}{{kv.Errorf(kv.CodeNoLeader, "no leader"), kv.CodeNoLeader}, {kv.Errorf(kv.CodeOutcomeUnknown, "unknown"), kv.CodeOutcomeUnknown}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err := insist(ctx, time.Hour, func(context.Context) (command.Result, error) {
			cancel(why)
			return command.Result{}, tc.answer
		})
		if kv.CodeOf(err) != tc.want || (tc.want == kv.CodeNoLeader) != errors.Is(err, why) {
			t.Errorf("%v: %v", tc.answer, err)
		}
	}
}
