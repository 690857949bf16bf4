package raftstore

import (
	"context"
	"errors"
	"sync"

	"github.com/hashicorp/raft"
)

// group runs calls that cannot be cancelled, until it is closed.
type group struct {
	mu     sync.Mutex // guards closed, and that nothing starts once it is set
	closed bool
	wg     sync.WaitGroup
}

// run calls fn in a goroutine of its own; false when the group is closed.
func (g *group) run(fn func()) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Go(fn)
	}
	return !g.closed
}

// close starts nothing any more and waits for what runs. When ctx ends first it gives up and says so.
func (g *group) close(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	done := make(chan struct{})
	go func() {
		g.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errors.New("raft did not answer what it had been given")
	}
}

// await runs a call of the library and waits for its future, or for ctx, after which the call may still succeed.
func (s *Store) await(ctx context.Context, call func() raft.Future) error {
	done := make(chan error, 1)
	if !s.futures.run(func() { done <- call().Error() }) {
		return errClosed()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.dead:
		return errClosed()
	}
}
