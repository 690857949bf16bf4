package cli

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	// plainInterval is the time between two lines where there is no terminal.
	plainInterval = 5 * time.Second
	// barInterval is the time between two updates of a bar.
	barInterval = 150 * time.Millisecond
	// progressQueue is how many messages wait for a slow terminal before those who send them wait too.
	progressQueue = 64
)

// progress shows how something goes: a bar on a terminal, a line every few seconds elsewhere. It also prints the
// messages of the transfer, so that they do not run into the bar. One goroutine does all the writing; stop ends it.
type progress struct {
	verb  string
	start time.Time
	// noun is what is counted; empty: it is one stream of bytes.
	noun string
	// quiet says that only messages are shown.
	quiet bool

	foundFiles, foundBytes atomic.Int64
	doneFiles, doneBytes   atomic.Int64

	messages chan string
	quit     chan struct{}
	ended    chan struct{}
}

// transferProgress begins to report on w how a transfer goes: where there is no screen, only on demand.
func transferProgress(w io.Writer, verb, noun string, demanded bool) *progress {
	return newProgress(w, verb, noun, !demanded && !hasScreen(w))
}

// streamProgress begins to report how one stream goes, of which about total bytes are expected.
func streamProgress(w io.Writer, verb string, total int64) *progress {
	p := newProgress(w, verb, "", false)
	p.foundBytes.Add(total)
	return p
}

func newProgress(w io.Writer, verb, noun string, quiet bool) *progress {
	p := &progress{
		verb: verb, start: time.Now(), noun: noun, quiet: quiet,
		messages: make(chan string, progressQueue), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	if hasScreen(w) {
		go p.runBar(w)
	} else {
		go p.runPlain(w)
	}
	return p
}

// hasScreen tells whether w is a terminal with room for a bar. One without a size has none.
func hasScreen(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || !cwriter.IsTerminal(int(f.Fd())) {
		return false
	}
	width, _, err := cwriter.GetSize(int(f.Fd()))
	return err == nil && width > 0
}

// found counts a file that is to be transferred.
func (p *progress) found(bytes int64) {
	p.foundFiles.Add(1)
	p.foundBytes.Add(bytes)
}

// done counts a file that has been dealt with.
func (p *progress) done(bytes int64) {
	p.doneFiles.Add(1)
	p.doneBytes.Add(bytes)
}

// reading counts the bytes that are read from r.
func (p *progress) reading(r io.Reader) io.Reader { return countingReader{r, p} }

type countingReader struct {
	r io.Reader
	p *progress
}

func (c countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.p.doneBytes.Add(int64(n))
	return n, err
}

// say prints a line. It waits while the terminal is slow.
func (p *progress) say(line string) { p.messages <- line }

// stop ends the display after everything said before it has been printed. Nothing may be said after it.
func (p *progress) stop() {
	close(p.quit)
	<-p.ended
}

func (p *progress) runPlain(w io.Writer) {
	defer close(p.ended)
	tick := time.NewTicker(plainInterval)
	defer tick.Stop()
	p.loop(w, tick.C, func() {
		if !p.quiet {
			_, _ = fmt.Fprintf(w, "%s: %s\n", p.verb, p) // progress nobody can see stops nothing
		}
	})
}

func (p *progress) runBar(w io.Writer) {
	defer close(p.ended)
	bars := mpb.New(mpb.WithOutput(w), mpb.WithRefreshRate(barInterval), mpb.WithWidth(64))
	bar := bars.AddBar(0,
		mpb.PrependDecorators(decor.Name(p.verb+" ")),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + p.String() })),
		mpb.BarRemoveOnComplete())
	tick := time.NewTicker(barInterval)
	defer tick.Stop()
	p.loop(bars, tick.C, func() {
		// Files weigh too, so that a tree of empty ones moves.
		const fileWeight = 4096
		done := p.doneBytes.Load() + fileWeight*p.doneFiles.Load()
		found := p.foundBytes.Load() + fileWeight*p.foundFiles.Load()
		bar.SetTotal(max(done, found)+1, false) // never full before the end
		bar.SetCurrent(done)
	})
	bar.Abort(true)
	bars.Wait()
}

// loop writes the messages and calls show with every tick, until stop.
func (p *progress) loop(w io.Writer, tick <-chan time.Time, show func()) {
	line := func(s string) { _, _ = io.WriteString(w, s+"\n") } // there is nobody left to tell
	for {
		select {
		case s := <-p.messages:
			line(s)
		case <-tick:
			show()
		case <-p.quit:
			for {
				select {
				case s := <-p.messages:
					line(s)
					continue
				default:
				}
				return
			}
		}
	}
}

// String is how far the transfer is. The totals grow while files are still being found, by a goroutine of its own that
// the transfer may be ahead of.
func (p *progress) String() string {
	files, bytes, rate := p.doneFiles.Load(), p.doneBytes.Load(), int64(0)
	if d := time.Since(p.start).Seconds(); d > 0 {
		rate = int64(float64(bytes) / d)
	}
	if p.noun == "" {
		return fmt.Sprintf("%s of %s, %s/s", humanBytes(bytes), humanBytes(max(bytes, p.foundBytes.Load())), humanBytes(rate))
	}
	return fmt.Sprintf("%d of %d %s, %s of %s, %s/s",
		files, max(files, p.foundFiles.Load()), p.noun, humanBytes(bytes), humanBytes(max(bytes, p.foundBytes.Load())), humanBytes(rate))
}
