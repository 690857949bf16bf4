package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

const (
	// listedValues is how many keys are listed at a time with their values, of which each has up to 64 KiB: it bounds a page
	// to some 17 MiB.
	listedValues = 200
	// maxQueued is how many keys are ahead of the one that is being written.
	maxQueued = 1024
	// partialSuffix is the end of the name of a file that is not whole.
	partialSuffix = ".partial"
)

// exportStream writes ndjson or wrangler's array.
func (r *run) exportStream(c *ucli.Context, format string) error {
	cl, ns, j, err := r.transferSetup(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	j.verb, j.noun = "export", "keys"
	ex := &streamExporter{
		source:   source{client: cl, namespace: c.String("namespace"), prefix: c.String("prefix")},
		parallel: c.Int("parallel"), array: format == formatWrangler, budget: semaphore.NewWeighted(maxHeldBytes),
	}
	if err := r.openStream(c, ns, format, &j, ex); err != nil {
		return err
	}
	return r.runStream(c, j, ex)
}

// openStream opens what the export writes to.
func (r *run) openStream(c *ucli.Context, ns client.Namespace, format string, j *job, ex *streamExporter) (err error) {
	name := c.Args().First()
	if name == stdStream {
		if c.Bool("resume") {
			return usagef("--resume needs a FILE: what went to standard output cannot be gone on with")
		}
		ex.out, j.out = bufio.NewWriterSize(r.Out, valueChunk), r.Err // the summary is no part of it
		return nil
	}
	if _, err := os.Lstat(name); err == nil {
		return fmt.Errorf("%s is there already; name a new file", name)
	}
	ex.name = name
	partial := name + partialSuffix
	j.keep = keeper{path: partial + ".state", args: exportArgs(c, ns, format)}
	if c.Bool("resume") {
		if j.before, err = j.keep.load(); err != nil {
			return err
		}
	}
	ex.before = j.before
	flags := os.O_RDWR
	if j.before == nil {
		flags |= os.O_CREATE | os.O_EXCL
	}
	if ex.file, err = os.OpenFile(partial, flags, 0o644); errors.Is(err, fs.ErrExist) {
		st, stErr := readState(j.keep.path)
		if st == nil && stErr == nil { // it ended before it had come anywhere
			return fmt.Errorf("%s is left of an export that cannot be gone on with; remove it", partial)
		}
		return fmt.Errorf("%s is an export that is not whole; go on with it by --resume, or remove it and %s", partial, j.keep.path)
	}
	if err == nil && j.before != nil {
		err = ex.cut(j.before.Size)
	}
	if err == nil && j.before == nil {
		err = j.keep.save(&state{})
	}
	if err != nil {
		if ex.file != nil {
			err = errors.Join(err, ex.file.Close())
		}
		return err
	}
	ex.out = bufio.NewWriterSize(ex.file, valueChunk)
	return nil
}

// cut takes off what was written after the state was kept.
func (ex *streamExporter) cut(size int64) error {
	info, err := ex.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < size {
		return fmt.Errorf("%s has %d bytes, fewer than the %d that were written; remove it and begin anew", ex.file.Name(), info.Size(), size)
	}
	if ex.written = size; mutKeepTail {
		return seekTo(ex.file, info.Size())
	}
	return errors.Join(ex.file.Truncate(size), seekTo(ex.file, size))
}

// streamExporter is one export of a stream. Values are fetched side by side, and written in the order of their keys.
type streamExporter struct {
	source
	parallel int
	array    bool
	budget   *semaphore.Weighted
	before   *state
	rep      *report

	name    string   // empty: standard output
	file    *os.File // nil: standard output
	out     *bufio.Writer
	written int64 // bytes, what is in the buffer too
	entries int64 // in the file, those of earlier runs too
	keep    keeper
	pause   time.Duration
	kept    time.Time // when the state was kept last
	broken  bool      // writing has failed: what the file holds behind the last kept state is not known
}

// place is where a value is awaited, in the order in which it is to be written.
type place struct {
	it   item
	cost int64
	done chan fetched // has room for one
}

// fetched is a key as it was read.
type fetched struct {
	value      []byte
	metadata   json.RawMessage
	expiration int64
	err        error
}

// runStream is runTransfer for a stream that is written in order.
func (r *run) runStream(c *ucli.Context, j job, ex *streamExporter) error {
	rep := &report{verb: j.verb, noun: j.noun, prog: transferProgress(r.Err, j.verb, j.noun, c.Bool("progress")), led: newLedger()}
	ex.rep, ex.keep, ex.pause = rep, j.keep, r.savePause
	if j.before != nil {
		rep.led.resume(j.before)
		ex.entries = j.before.Totals.Items
	}
	start := time.Now()
	err := ex.run(c.Context)
	whole := err == nil && len(rep.failed) == 0
	if whole {
		err = ex.finish()
	} else if ex.file != nil {
		if saveErr := ex.save(); saveErr != nil && !ex.broken {
			err = errors.Join(err, saveErr)
		}
		err = errors.Join(err, ex.file.Close())
	} else if err == nil {
		err = ex.close()
	}
	if err == nil && whole {
		err = j.keep.remove()
	}
	rep.prog.stop()
	return r.conclude(c.Context, j, rep, time.Since(start), ex.file != nil && (!whole || err != nil), err)
}

// run reads all that is due and writes it.
func (ex *streamExporter) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	places, work := make(chan *place, maxQueued), make(chan *place, ex.parallel)
	group.Go(func() error {
		defer close(places)
		defer close(work)
		return ex.list(ctx, places, work)
	})
	for range ex.parallel {
		group.Go(func() error {
			for p := range work {
				p.done <- ex.fetch(ctx, p.it)
			}
			return nil
		})
	}
	group.Go(func() error {
		for p := range places {
			select {
			case f := <-p.done:
				if err := ex.take(ctx, p, f); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return group.Wait()
}

// list goes through the keys that are due: first those that failed in an earlier run, then those it did not come to.
func (ex *streamExporter) list(ctx context.Context, places, work chan<- *place) error {
	o := client.ListOptions{Prefix: ex.prefix, Limit: listedValues, Values: true}
	after := ""
	if ex.before != nil {
		for _, key := range ex.before.Failed {
			it := item{key: string(key), mark: string(key), again: true, size: kv.MaxValueBytes}
			if err := ex.await(ctx, it, nil, places, work); err != nil {
				return err
			}
		}
		if ex.before.Begun {
			after = string(ex.before.Mark)
			o.Limit, o.Values = kv.MaxListLimit, false
		}
	}
	var order ordered
	for {
		page, err := ex.client.List(ctx, ex.namespace, o)
		if err != nil {
			return err
		}
		if !o.Values && len(page.Keys) > 0 && page.Keys[len(page.Keys)-1].Name > after {
			o.Limit, o.Values = listedValues, true // what was done before ends within this page: again, with values
			continue
		}
		for _, k := range page.Keys {
			if err := order.next(k.Name); err != nil {
				return err
			}
			if k.Name <= after {
				continue
			}
			if err := ex.await(ctx, listedItem(k), &k, places, work); err != nil {
				return err
			}
		}
		switch {
		case page.Complete:
			return nil
		case page.Cursor == o.Cursor:
			return errors.New("the listing does not go on: the node returned the cursor it was given")
		}
		o.Cursor = page.Cursor
	}
}

// await makes a place for a key, whose value may have come with the listing.
func (ex *streamExporter) await(ctx context.Context, it item, k *client.Key, places, work chan<- *place) error {
	if err := ex.rep.begin(ctx, &it); err != nil {
		return err
	}
	ex.rep.prog.found(it.size)
	p := &place{it: it, cost: it.size + itemBytes, done: make(chan fetched, 1)}
	if err := ex.budget.Acquire(ctx, p.cost); err != nil {
		return err
	}
	listed := k != nil && k.Value != nil
	if listed {
		p.done <- fetched{value: k.Value, metadata: k.Metadata, expiration: k.Expiration}
	}
	select {
	case places <- p:
	case <-ctx.Done():
		return ctx.Err()
	}
	if listed {
		return nil
	}
	select {
	case work <- p:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// fetch reads one value.
func (ex *streamExporter) fetch(ctx context.Context, it item) fetched {
	obj, err := ex.get(ctx, it)
	if err != nil {
		return fetched{err: err}
	}
	var b bytes.Buffer
	if obj.Size > 0 {
		b.Grow(int(min(obj.Size, kv.MaxValueBytes)) + bytes.MinRead)
	}
	n, err := b.ReadFrom(io.LimitReader(obj.Body, kv.MaxValueBytes+1))
	if err = errors.Join(err, obj.Body.Close()); err == nil && n > kv.MaxValueBytes {
		err = tooLarge(fmt.Sprintf("more than %d bytes", kv.MaxValueBytes))
	}
	return fetched{value: b.Bytes(), metadata: it.metadataOf(obj), expiration: obj.Expiration, err: err}
}

// take writes one key, when its turn has come, and notes it.
func (ex *streamExporter) take(ctx context.Context, p *place, f fetched) error {
	defer ex.budget.Release(p.cost)
	if f.err == nil {
		if err := ex.write(p.it.key, f); err != nil {
			ex.broken = true
			return err
		}
	}
	if err := ex.rep.moved(ctx, p.it, int64(len(f.value)), f.err); err != nil {
		return err
	}
	if ex.file == nil || time.Since(ex.kept) < ex.pause {
		return nil
	}
	return ex.save()
}

// save keeps how far the file has come, once all of that is on the disk.
func (ex *streamExporter) save() error {
	if ex.broken {
		return nil
	}
	if err := errors.Join(ex.out.Flush(), ex.file.Sync()); err != nil {
		ex.broken = true
		return err
	}
	st := state{Size: ex.written}
	run, _ := ex.rep.sofar()
	ex.rep.led.write(&st, run)
	ex.kept = time.Now()
	return ex.keep.save(&st)
}

// close writes the end of the stream.
func (ex *streamExporter) close() error {
	end := ""
	if ex.array {
		if end = "\n]\n"; ex.entries == 0 {
			end = "[]\n"
		}
	}
	return errors.Join(ex.put(end), ex.out.Flush())
}

// finish makes the file whole, and gives it its name only then.
func (ex *streamExporter) finish() error {
	if err := ex.close(); err != nil || ex.file == nil {
		if ex.file != nil {
			err = errors.Join(err, ex.file.Close())
		}
		return err
	}
	if err := errors.Join(ex.file.Sync(), ex.file.Close()); err != nil {
		return err
	}
	if _, err := os.Lstat(ex.name); err == nil {
		return fmt.Errorf("%s has appeared while the export ran; move it away", ex.name)
	}
	if err := os.Rename(ex.file.Name(), ex.name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(ex.name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
