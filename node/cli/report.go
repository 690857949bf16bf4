package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

// failure is one file or key that was not transferred.
type failure struct {
	File  string `json:"file,omitempty"`
	Key   string `json:"key,omitempty"`
	At    string `json:"at,omitempty"`
	Error string `json:"error"`
}

// report is the outcome of a transfer.
type report struct {
	verb string
	noun string // what is counted: files or keys
	prog *progress
	led  *ledger

	mu      sync.Mutex // guards all below
	run     totals     // Skipped: keys that had expired, or were deleted meanwhile
	failed  []failure
	unknown bool // nobody knows of one that failed whether it was carried out
}

// begin enters an item into the ledger. One goroutine calls it, in the order of the source.
func (rep *report) begin(ctx context.Context, it *item) (err error) {
	it.number, err = rep.led.begin(ctx, it.mark, it.again)
	return err
}

func (rep *report) ok(bytes int64) {
	rep.mu.Lock()
	rep.run.Items++
	rep.run.Bytes += bytes
	rep.mu.Unlock()
	rep.prog.done(bytes)
}

func (rep *report) skip() {
	rep.mu.Lock()
	rep.run.Skipped++
	rep.mu.Unlock()
	rep.prog.done(0)
}

// fail notes a failure. The error is errTooManyFailures when it is time to stop.
func (rep *report) fail(it item, err error) error {
	f, name := it.failureOf(plainly(err))
	rep.mu.Lock()
	rep.failed = append(rep.failed, f)
	rep.unknown = rep.unknown || client.CodeOf(err) == kv.CodeOutcomeUnknown
	n := len(rep.failed)
	rep.mu.Unlock()
	rep.prog.say(fmt.Sprintf("kvmesh: %s %s: %s", rep.verb, name, f.Error))
	if n >= maxFailures {
		return errTooManyFailures
	}
	return nil
}

// sofar is what this run has moved.
func (rep *report) sofar() (run totals, failures int) {
	rep.mu.Lock()
	defer rep.mu.Unlock()
	return rep.run, len(rep.failed)
}

// moved notes what became of an item. Its error ends the transfer.
func (rep *report) moved(ctx context.Context, it item, bytes int64, err error) error {
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if it.settled != nil {
		it.settled()
	}
	failed := err != nil && !errors.Is(err, errSkipped)
	switch {
	case err == nil:
		rep.ok(bytes)
	case failed:
		rep.prog.done(it.size)
		err = rep.fail(it, err)
	default:
		rep.skip()
		err = nil
	}
	rep.led.settle(it.number, failed)
	return err
}

// summary prints what a transfer did.
func summary(w io.Writer, rep *report, before *state, took time.Duration, asJSON bool) error {
	seconds := max(took.Seconds(), 1e-9)
	n := rep.run
	var earlier totals
	if before != nil {
		earlier = before.Totals
	}
	if asJSON {
		doc := map[string]any{
			rep.noun: n.Items, "bytes": n.Bytes, "skipped": n.Skipped, "seconds": seconds, "bytes_per_second": float64(n.Bytes) / seconds,
			"failed": append([]failure{}, rep.failed...),
		}
		if before != nil {
			doc["before"] = earlier
		}
		return writeJSONTo(w, doc)
	}
	line := fmt.Sprintf("%s: %d %s, %s in %.1f s (%.0f %s/s, %s/s)", rep.verb, n.Items, rep.noun, humanBytes(n.Bytes),
		seconds, float64(n.Items)/seconds, rep.noun, humanBytes(int64(float64(n.Bytes)/seconds)))
	if before != nil {
		line += fmt.Sprintf(", %d before", earlier.Items)
	}
	if n.Skipped > 0 {
		line += fmt.Sprintf(", %d expired or gone", n.Skipped)
	}
	if n := len(rep.failed); n > 0 {
		line += fmt.Sprintf(", %d FAILED", n)
	}
	_, err := fmt.Fprintln(w, line)
	return err
}
