package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/semaphore"

	"kvmesh/node/cli/client"
	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

const (
	// maxHeldBytes bounds the values that a transfer holds in memory, beside the one that is being read.
	maxHeldBytes = 64 << 20
	// itemBytes is about what an item takes beside its value.
	itemBytes = 1 << 10
	// maxUnknown bounds how many names of unknown members are told.
	maxUnknown = 20
)

// importStream imports ndjson or wrangler's array.
func (r *run) importStream(c *ucli.Context, format string) (err error) {
	cl, ns, j, err := r.transferSetup(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	source, statePath := c.Args().First(), ""
	var in io.Reader = newInterruptible(c.Context, r.In)
	id := []stateArg{{"the source", source}, {"--format", format}}
	if source != stdStream {
		f, err := os.Open(source)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // it was only read
		if in, id, err = identify(f, source, format); err != nil {
			return err
		}
		statePath = id[0].Value + stateSuffix
	}
	if j, err = r.importJob(c, j, ns, statePath, id...); err != nil {
		return err
	}
	im := &streamImporter{
		valueSink: newValueSink(cl, c), prefix: c.String("prefix"), only: c.String("only"), before: j.before, format: format, in: in,
	}
	j.build = func(rep *report) transfer {
		im.rep = rep
		return im.transfer(c.Int("parallel"), im.find)
	}
	return r.runTransfer(c, j)
}

// identify says which file it is. Another file of the same name is another source.
func identify(f *os.File, name, format string) (io.Reader, []stateArg, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	abs, err := filepath.Abs(name)
	id := []stateArg{{"the source", abs}, {"--format", format}}
	if info.Mode().IsRegular() {
		id = append(id,
			stateArg{"the size of " + name, strconv.FormatInt(info.Size(), 10)},
			stateArg{"the time of the last change of " + name, info.ModTime().UTC().Format(time.RFC3339Nano)})
	}
	return f, id, err
}

// valueSink writes values that are in memory. Their bytes are taken from a budget, and two values of one key never overtake
// each other.
type valueSink struct {
	sink
	budget *semaphore.Weighted

	mu   sync.Mutex               // guards busy
	busy map[string]chan struct{} // the keys that are under way; closed when they no longer are
}

func newValueSink(cl *client.Client, c *ucli.Context) *valueSink {
	return &valueSink{
		sink: newSink(cl, c), budget: semaphore.NewWeighted(maxHeldBytes), busy: map[string]chan struct{}{},
	}
}

func (s *valueSink) transfer(parallel int, find func(context.Context, func(item) error) error) transfer {
	return transfer{parallel: parallel, find: find, move: s.move, small: s.small, moveMany: s.moveMany}
}

// hold takes what an item costs from the budget, until the item is settled, and waits for an earlier value of its key.
func (s *valueSink) hold(ctx context.Context, it *item) error {
	free := make(chan struct{})
	for {
		s.mu.Lock()
		other := s.busy[it.key]
		if other == nil {
			s.busy[it.key] = free
		}
		s.mu.Unlock()
		if other == nil || mutOvertake {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	cost := it.size + itemBytes
	if err := s.budget.Acquire(ctx, cost); err != nil {
		return err
	}
	key := it.key
	it.settled = func() {
		s.budget.Release(cost)
		s.mu.Lock()
		delete(s.busy, key)
		s.mu.Unlock()
		close(free)
	}
	return nil
}

func (s *valueSink) small(it item) bool { return it.size <= smallFile }

func (s *valueSink) moveMany(ctx context.Context, group []item) []error {
	return s.together(ctx, group, func(it item) ([]byte, error) { return it.value, nil }, s.move)
}

func (s *valueSink) move(ctx context.Context, it item) (int64, error) {
	o := client.PutOptions{Metadata: it.entry.Metadata}
	switch {
	case it.ttl != 0: // it wins
		o.ExpirationTTL = strconv.FormatInt(it.ttl, 10)
	case it.entry.Expiration != 0:
		o.Expiration = strconv.FormatInt(it.entry.Expiration, 10)
	}
	_, err := s.client.Put(ctx, s.namespace, it.key, client.BytesBody(it.value), o)
	if hasExpired(it, err) {
		return 0, errSkipped
	}
	return it.size, err
}

// streamImporter is one import of a stream of entries.
type streamImporter struct {
	*valueSink
	prefix, only string
	before       *state
	format       string
	in           io.Reader
	rep          *report

	r       entryReader
	unknown map[string]bool // members that were told of
}

func (im *streamImporter) find(ctx context.Context, emit func(item) error) error {
	im.unknown = map[string]bool{}
	if im.format == formatWrangler {
		return im.array(ctx, emit)
	}
	return im.lines(ctx, emit)
}

// reached is the number of the entry that an earlier run has reached, 0 = none.
func (im *streamImporter) reached() (int64, error) {
	if im.before == nil || !im.before.Begun {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(im.before.Mark), 10, 64)
	if err != nil {
		return 0, errors.New("the state file does not name an entry; remove it to begin anew")
	}
	return n, nil
}

// array reads wrangler's array. After an entry that is not JSON nothing can be found any more.
func (im *streamImporter) array(ctx context.Context, emit func(item) error) error {
	reached, err := im.reached()
	if err != nil {
		return err
	}
	r := jsonstream.New(im.in)
	im.r.r = r
	at := "before the first entry"
	err = r.Array(func(i int) error {
		n := int64(i) + 1
		at = "entry " + strconv.FormatInt(n, 10)
		mark := strconv.FormatInt(n, 10)
		due, again := im.rep.led.due(mark, n > reached)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case !due:
			return r.Skip()
		}
		begins := r.Offset()
		e, err := im.r.read()
		var fatal *unreadableError
		if errors.As(err, &fatal) {
			return err
		}
		if err != nil {
			err = fmt.Errorf("%w (it begins at byte %d)", err, begins)
		}
		return im.entry(ctx, emit, item{at: at, mark: mark, again: again}, e, err)
	})
	if err == nil {
		at = "behind the array"
		err = r.End()
	}
	var syntax *jsonstream.SyntaxError
	var value *jsonstream.ValueError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("%s: %w; what came before has been imported", at, syntax)
	case errors.As(err, &value):
		return fmt.Errorf("wrangler's format is an array of entries: %w; is it --format ndjson?", value)
	}
	return err
}

// entry checks an entry and hands it on.
func (im *streamImporter) entry(ctx context.Context, emit func(item) error, it item, e entry, err error) error {
	it.key = e.key
	if err == nil {
		if !strings.HasPrefix(e.key, im.only) {
			return nil
		}
		it.key = im.prefix + e.key
		err = kv.ValidateKey(it.key)
		im.tell(it.at, e.unknown)
	}
	if beginErr := im.rep.begin(ctx, &it); beginErr != nil {
		return beginErr
	}
	if err != nil {
		return im.rep.moved(ctx, it, 0, err)
	}
	it.value, it.size = e.value, int64(len(e.value))
	it.entry, it.ttl = manifestEntry{Metadata: e.metadata, Expiration: e.expiration}, e.ttl
	if e.ttl != 0 {
		it.entry.Expiration = 0
	}
	if err := im.hold(ctx, &it); err != nil {
		return err
	}
	return emit(it)
}

// tell says which members were passed over, once for each name.
func (im *streamImporter) tell(at string, names []string) {
	for _, name := range names {
		if im.unknown[name] || len(im.unknown) >= maxUnknown {
			continue
		}
		im.unknown[name] = true
		im.rep.prog.say(fmt.Sprintf("kvmesh: import %s: the member %q is unknown, and passed over in all entries; there are key, value, base64, "+
			"metadata, expiration, expiration_ttl", at, name))
	}
}

// lines reads an entry a line. A line that is none is named, and the next one read.
func (im *streamImporter) lines(ctx context.Context, emit func(item) error) error {
	reached, err := im.reached()
	if err != nil {
		return err
	}
	lr := &lineReader{in: bufio.NewReaderSize(im.in, valueChunk)}
	r := jsonstream.New(lr)
	im.r.r = r
	for n := int64(1); ; n++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		mark := strconv.FormatInt(n, 10)
		due, again := im.rep.led.due(mark, n > reached)
		more, err := lr.next(due)
		switch {
		case err != nil:
			return err
		case !more:
			return nil
		case !due:
			continue
		}
		offset := lr.offset
		r.Reset(lr)
		if empty, err := r.Empty(); err != nil {
			return err
		} else if empty {
			continue
		}
		e, err := im.r.read()
		if err == nil {
			err = r.End()
		}
		if lr.err != nil { // of the source, not of the line
			return lr.err
		}
		var syntax *jsonstream.SyntaxError
		if errors.As(err, &syntax) {
			err = fmt.Errorf("not JSON at byte %d of the line, %d of the stream: %s", syntax.Offset, offset+syntax.Offset, syntax.What)
		}
		if err := im.entry(ctx, emit, item{at: "line " + mark, mark: mark, again: again}, e, err); err != nil {
			return err
		}
	}
}
