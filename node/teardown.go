package node

import (
	"context"
	"errors"
	"fmt"
)

// teardown is the stack of what has to be undone, last in, first out. A step is pushed on the line after what it undoes
// succeeded, so that a half-built node rolls back the same way as a running one stops.
type teardown struct{ steps []teardownStep }

type teardownStep struct {
	name string
	undo func(context.Context) error
}

func (t *teardown) push(name string, undo func(context.Context) error) {
	t.steps = append(t.steps, teardownStep{name, undo})
}

// run undoes everything. It goes on after a step that fails, and reports all that did.
func (t *teardown) run(ctx context.Context) error {
	var errs []error
	for i := len(t.steps) - 1; i >= 0; i-- {
		if err := t.steps[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.steps[i].name, err))
		}
	}
	t.steps = nil
	return errors.Join(errs...)
}
