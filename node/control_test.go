package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Whoever asks first for an unknown namespace asks for all who wait: that it goes away must not fail the others.
func TestNamespaceQuestionOutlivesItsAsker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kek, err := seal.NewKEK(make([]byte, seal.KEKBytes))
		if err != nil {
			t.Fatal(err)
		}
		s := newControlState(kek, t.TempDir(), slog.New(slog.DiscardHandler))
		s.joined = func(kv.ClusterID) error { return nil }
		answer := make(chan struct{})
		asked := 0
		s.ask = func(ctx context.Context, _ kv.Control) (kv.Control, error) {
			asked++
			select {
			case <-answer:
			case <-ctx.Done():
				return kv.Control{}, context.Cause(ctx)
			}
			return kv.Control{
				Cluster: kv.NewClusterID(), Epoch: kv.NewEpoch(1, kv.Epoch{}), Revision: 1,
				Namespaces: []kv.Namespace{{ID: kv.NewNamespaceID(), Title: "new"}},
			}, nil
		}
		first, leave := context.WithCancel(t.Context())
		results := make(chan error, 3)
		for _, ctx := range []context.Context{first, t.Context(), t.Context()} {
			go func() {
				ns, err := s.namespace(ctx, "new")
				if err == nil && ns.Title != "new" {
					err = errors.New(ns.Title)
				}
				results <- err
			}()
			synctest.Wait()
		}
		leave()
		synctest.Wait()
		close(answer)
		for range 3 {
			if err := <-results; err != nil && kv.CodeOf(err) != kv.CodeDeadlineExceeded {
				t.Error(err)
			}
		}
		if asked != 1 {
			t.Errorf("the mesh was asked %d times, want once", asked)
		}
	})
}
