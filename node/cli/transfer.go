package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
		&ucli.BoolFlag{Name: "resume", DisableDefaultText: true, Usage: "go on with one that was interrupted, or in which something failed"},
		&ucli.BoolFlag{Name: "progress", DisableDefaultText: true, Usage: "show how it goes, where standard error is no terminal too"},
		&ucli.IntFlag{Name: "parallel", Value: defaultParallel, Usage: "`N` values under way at a time"},
		namespaceFlag())
	return clientFlags(more...)
}

// item is one file or key to be transferred.
type item struct {
	key  string
	file string // the path below the directory, with slashes; empty where there are no files
	at   string // where a stream has it: "line 17"
	size int64  // as far as it is known beforehand

	number int64  // in the ledger
	mark   string // names it in the ledger
	again  bool   // it failed in an earlier run
	left   bool   // it was not asked for

	entry    manifestEntry // import: metadata and expiration
	info     fs.FileInfo   // import: the file as it was found
	value    []byte        // import: where there is no file
	ttl      int64         // import: in seconds, 0 = none
	settled  func()        // called when it has been dealt with; may be nil
	revision uint64        // export: as listed
}

// failureOf says that it was not transferred.
func (it item) failureOf(msg string) (f failure, name string) {
	f = failure{File: validText(it.file), At: it.at, Error: msg}
	switch {
	case it.file != "":
		return f, printable(it.file)
	case it.key == "":
		return f, it.at
	}
	f.Key, name = validText(it.key), printable(it.key)
	if it.at != "" {
		name = it.at + ", key " + name
	}
	return f, name
}

// validText is s, quoted where JSON would change it.
func validText(s string) string {
	if !utf8.ValidString(s) {
		return printable(s)
	}
	return s
}

// transfer is one import or export.
type transfer struct {
	parallel int
	// find enters every item into the ledger and hands it to emit, which blocks while all workers are busy. What it cannot use
	// it reports itself.
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

// savePause is how often the state is kept: what is done within it may be done again by --resume.
const savePause = time.Second

// job is a transfer with all that it needs to be carried out.
type job struct {
	verb, noun string
	out        io.Writer // of the summary
	asJSON     bool
	keep       keeper
	before     *state // what is gone on with; nil: nothing
	build      func(*report) transfer
	// finish is called once everything was found and dealt with; whole says that nothing failed.
	finish func(whole bool) error
}

// runTransfer runs an import or export and prints its summary.
func (r *run) runTransfer(c *ucli.Context, j job) error {
	rep := &report{verb: j.verb, noun: j.noun, prog: transferProgress(r.Err, j.verb, j.noun, c.Bool("progress")), led: newLedger()}
	if j.before != nil {
		rep.led.resume(j.before)
	}
	start := time.Now()
	saver := startSaver(rep, j.keep, r.savePause)
	err := j.build(rep).run(c.Context, rep)
	kept := saver.stop(err == nil && len(rep.failed) == 0)
	if err == nil && j.finish != nil {
		err = j.finish(len(rep.failed) == 0)
	}
	if err == nil && len(rep.failed) == 0 {
		err = j.keep.remove()
	}
	rep.prog.stop()
	return r.conclude(c.Context, j, rep, time.Since(start), kept, err)
}

// conclude prints the summary of a transfer, and says how it can go on.
func (r *run) conclude(ctx context.Context, j job, rep *report, took time.Duration, kept bool, err error) error {
	if err2 := summary(j.out, rep, j.before, took, j.asJSON); err == nil {
		err = err2
	}
	goOn := ""
	if kept {
		goOn = "; --resume goes on with it"
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted: the rest was not transferred" + goOn)
	case err != nil:
		return fmt.Errorf("%s: %w%s", j.verb, err, goOn)
	case len(rep.failed) > 0:
		if kept {
			r.printErr(fmt.Sprintf("%s: not everything was transferred; --resume tries again what failed, and nothing else", j.verb))
		}
		if rep.unknown {
			r.printErr(`where nobody else writes these keys, --retry-unknown does no harm: then an import outlives a change of the leader`)
		}
		return errReported
	}
	return nil
}

// saver keeps the state of a transfer while it runs.
type saver struct {
	rep   *report
	keep  keeper
	pause time.Duration
	quit  chan struct{}
	done  chan struct{}
}

func startSaver(rep *report, k keeper, pause time.Duration) *saver {
	s := &saver{rep: rep, keep: k, pause: pause, quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

func (s *saver) run() {
	defer close(s.done)
	tick := time.NewTicker(s.pause)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.save()
		case <-s.quit:
			return
		}
	}
}

func (s *saver) save() {
	if s.keep.path == "" {
		return
	}
	var st state
	run, _ := s.rep.sofar()
	s.rep.led.write(&st, run)
	if err := s.keep.save(&st); err != nil {
		s.rep.prog.say(fmt.Sprintf("kvmesh: %s: cannot keep how far it has come, so --resume cannot go on with it: %v", s.rep.verb, err))
		s.keep.path = ""
	}
}

// stop ends it; unless all is done, the state is kept once more. The result says whether there is one to go on with.
func (s *saver) stop(whole bool) bool {
	close(s.quit)
	<-s.done
	if !whole {
		s.save()
	}
	return s.keep.path != ""
}

func checkParallel(c *ucli.Context) error {
	if n := c.Int("parallel"); n < 1 || n > maxParallel {
		return usagef("--parallel is %d; use 1 to %d", n, maxParallel)
	}
	return nil
}

// transferSetup reads what import and export have in common, and asks the node for the namespace, so that a wrong URL,
// token or name is one error and not one for each file.
func (r *run) transferSetup(c *ucli.Context) (cl *client.Client, ns client.Namespace, j job, err error) {
	if j.asJSON, err = wantsJSON(c); err != nil {
		return nil, ns, j, err
	}
	if err = checkParallel(c); err != nil {
		return nil, ns, j, err
	}
	if cl, err = r.connect(c, c.Int("parallel")+1); err != nil { // one more for the listing
		return nil, ns, j, err
	}
	if ns, err = cl.Namespace(c.Context, c.String("namespace")); err != nil {
		cl.Close()
		return nil, ns, j, err
	}
	j.out = r.Out
	return cl, ns, j, nil
}
