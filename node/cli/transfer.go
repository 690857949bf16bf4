package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
	"unicode/utf8"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"kvmesh/node/cli/client"
)

const (
	defaultParallel = 16
	// maxParallel keeps a transfer from taking all the connections of a node.
	maxParallel = 256
	// maxFailures ends a transfer in which nearly everything goes wrong, and bounds the list of failures.
	maxFailures = 1000
)

// errTooManyFailures ends a transfer.
var errTooManyFailures = fmt.Errorf("given up after %d failures", maxFailures)

// transferFlags are those that import and export share.
func transferFlags(more ...ucli.Flag) []ucli.Flag {
	more = append(more,
		&ucli.IntFlag{Name: "parallel", Value: defaultParallel, Usage: "`N` files under way at a time"},
		namespaceFlag())
	return clientFlags(more...)
}

// item is one file to be transferred.
type item struct {
	key  string
	file string // the path below the directory, with slashes
	size int64  // as far as it is known beforehand

	entry    manifestEntry // import: what the manifest says
	info     fs.FileInfo   // import: the file as it was found
	revision uint64        // export: as listed
}

// failure is one file that was not transferred.
type failure struct {
	File  string `json:"file"`
	Error string `json:"error"`
}

// report is the outcome of a transfer.
type report struct {
	verb string
	prog *progress

	mu      sync.Mutex // guards all below
	files   int64
	bytes   int64
	skipped int64 // keys that had expired, or were deleted meanwhile
	failed  []failure
}

func (rep *report) ok(it item, bytes int64) {
	rep.mu.Lock()
	rep.files++
	rep.bytes += bytes
	rep.mu.Unlock()
	rep.prog.done(bytes)
}

func (rep *report) skip() {
	rep.mu.Lock()
	rep.skipped++
	rep.mu.Unlock()
	rep.prog.done(0)
}

// fail notes a failure. The error is errTooManyFailures when it is time to stop.
func (rep *report) fail(file string, err error) error {
	msg := plainly(err)
	name := printable(file)
	if !utf8.ValidString(file) { // JSON would change it
		file = name
	}
	rep.mu.Lock()
	rep.failed = append(rep.failed, failure{file, msg})
	n := len(rep.failed)
	rep.mu.Unlock()
	rep.prog.say(fmt.Sprintf("kvmesh: %s %s: %s", rep.verb, name, msg))
	if n >= maxFailures {
		return errTooManyFailures
	}
	return nil
}

// transfer is one import or export.
type transfer struct {
	parallel int
	// find hands every file to emit, which blocks while all workers are busy. What it cannot use it reports itself.
	find func(ctx context.Context, emit func(item) error) error
	// count calls found for every file ahead of find, which waits for the workers; nil: there is no way to know.
	count func(ctx context.Context, found func(bytes int64))
	// move transfers one file and returns its size. errSkipped counts it as nothing to be done.
	move func(ctx context.Context, it item) (int64, error)
	// moveMany, if there is one, transfers up to groupFiles items that small says yes to, groupBytes in all, and returns an
	// error or nil for each.
	moveMany func(ctx context.Context, group []item) []error
	small    func(it item) bool
}

var errSkipped = errors.New("skipped")

// run moves all that is found. A file that fails is noted and does not stop the others. The error says why the transfer
// could not go to its end. When run returns, nothing is under way.
func (t transfer) run(ctx context.Context, rep *report) error {
	group, ctx := errgroup.WithContext(ctx)
	ahead := t.parallel
	if t.moveMany != nil {
		ahead = t.parallel * groupFiles // so that groups can form
	}
	items := make(chan item, ahead)
	if t.count != nil {
		group.Go(func() error {
			t.count(ctx, rep.prog.found)
			return nil
		})
	}
	group.Go(func() error {
		defer close(items)
		return t.find(ctx, func(it item) error {
			if t.count == nil {
				rep.prog.found(it.size)
			}
			select {
			case items <- it:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range t.parallel {
		group.Go(func() error {
			for it := range items {
				if err := t.take(ctx, rep, it, items); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// take moves one item; a small one together with others that have been found by now. So items go in groups while they are
// found sooner than they can be moved, and none waits for a group to fill.
func (t transfer) take(ctx context.Context, rep *report, it item, items <-chan item) error {
	if t.moveMany == nil || !t.small(it) {
		bytes, err := t.move(ctx, it)
		return rep.moved(ctx, it, bytes, err)
	}
	group, bytes := []item{it}, it.size
	var large *item // the first that does not belong to the group
	for large == nil && len(group) < groupFiles {
		select {
		case next, ok := <-items:
			if !ok {
				return t.together(ctx, rep, group, nil)
			}
			if !t.small(next) || bytes+next.size > groupBytes {
				large = &next
				continue
			}
			group, bytes = append(group, next), bytes+next.size
		default:
			return t.together(ctx, rep, group, nil)
		}
	}
	return t.together(ctx, rep, group, large)
}

func (t transfer) together(ctx context.Context, rep *report, group []item, large *item) error {
	for i, err := range t.moveMany(ctx, group) {
		if err := rep.moved(ctx, group[i], group[i].size, err); err != nil {
			return err
		}
	}
	if large == nil {
		return nil
	}
	bytes, err := t.move(ctx, *large)
	return rep.moved(ctx, *large, bytes, err)
}

// moved notes what became of an item. Its error ends the transfer.
func (rep *report) moved(ctx context.Context, it item, bytes int64, err error) error {
	switch {
	case err == nil:
		rep.ok(it, bytes)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errSkipped):
		rep.skip()
	default:
		rep.prog.done(it.size)
		return rep.fail(it.file, err)
	}
	return nil
}

// runTransfer runs an import or export and prints its summary. finish is called when everything was found and moved.
func (r *run) runTransfer(
	c *ucli.Context, verb string, asJSON bool, build func(*report) transfer, finish func() error,
) error {
	rep := &report{verb: verb, prog: startProgress(r.Err, verb)}
	start := time.Now()
	err := build(rep).run(c.Context, rep)
	if err == nil {
		err = finish()
	}
	rep.prog.stop()
	if err2 := r.summary(rep, time.Since(start), asJSON); err == nil {
		err = err2
	}
	switch {
	case c.Context.Err() != nil:
		return errors.New("interrupted: the rest was not transferred")
	case err != nil:
		return fmt.Errorf("%s: %w", verb, err)
	case len(rep.failed) > 0:
		return errReported
	}
	return nil
}

func (r *run) summary(rep *report, took time.Duration, asJSON bool) error {
	seconds := max(took.Seconds(), 1e-9)
	if asJSON {
		return r.printJSON(struct {
			Files          int64     `json:"files"`
			Bytes          int64     `json:"bytes"`
			Skipped        int64     `json:"skipped"`
			Seconds        float64   `json:"seconds"`
			BytesPerSecond float64   `json:"bytes_per_second"`
			Failed         []failure `json:"failed"`
		}{rep.files, rep.bytes, rep.skipped, seconds, float64(rep.bytes) / seconds, append([]failure{}, rep.failed...)})
	}
	line := fmt.Sprintf("%s: %d files, %s in %.1f s (%.0f files/s, %s/s)", rep.verb, rep.files, humanBytes(rep.bytes),
		seconds, float64(rep.files)/seconds, humanBytes(int64(float64(rep.bytes)/seconds)))
	if rep.skipped > 0 {
		line += fmt.Sprintf(", %d expired or gone", rep.skipped)
	}
	if n := len(rep.failed); n > 0 {
		line += fmt.Sprintf(", %d FAILED", n)
	}
	return r.printf("%s\n", line)
}

// transferSetup reads what import and export have in common, and asks the node for the namespace, so that a wrong URL,
// token or name is one error and not one for each file.
func (r *run) transferSetup(c *ucli.Context) (cl *client.Client, parallel int, asJSON bool, err error) {
	if err = exactly(c, 1, "DIR"); err != nil {
		return nil, 0, false, err
	}
	if asJSON, err = wantsJSON(c); err != nil {
		return nil, 0, false, err
	}
	if parallel = c.Int("parallel"); parallel < 1 || parallel > maxParallel {
		return nil, 0, false, usagef("--parallel is %d; use 1 to %d", parallel, maxParallel)
	}
	if cl, err = r.connect(c, parallel+1); err != nil { // one more for the listing
		return nil, 0, false, err
	}
	if _, err = cl.Namespace(c.Context, c.String("namespace")); err != nil {
		cl.Close()
		return nil, 0, false, err
	}
	return cl, parallel, asJSON, nil
}
