package wan

import (
	"os"
	"sync"
	"time"
)

// line is one direction of a connection: a bounded queue of pieces, each of which can be taken when it is due. Where it
// waits it waits for expired too, a channel that closes at the deadline; nil is none.
type line struct {
	mu      sync.Mutex // guards all below; never held while waiting
	pieces  []piece    // oldest first
	cost    int        // of pieces
	err     error      // nothing more comes; follows the pieces, not before errDue
	errDue  time.Time
	dead    bool          // err counts at once, the pieces are gone
	changed chan struct{} // closed and replaced by every change
}

// piece is bytes on their way.
type piece struct {
	b   []byte
	due time.Time
}

func newLine() *line { return &line{changed: make(chan struct{})} }

// wake tells the waiting ones to look again. The caller holds mu.
func (l *line) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// put adds a piece. It waits while the line is full.
func (l *line) put(b []byte, due time.Time, expired <-chan struct{}) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		switch {
		case l.err != nil:
			return l.err
		case isClosed(expired):
			return os.ErrDeadlineExceeded
		case l.cost < maxOnTheWay:
			l.pieces = append(l.pieces, piece{b, due})
			l.cost += len(b) + perPiece
			l.wake()
			return nil
		}
		l.pause(nil, expired)
	}
}

// end lets err follow the last piece, not before due. An earlier end stands.
func (l *line) end(err error, due time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err, l.errDue = err, due
		l.wake()
	}
}

// fail ends the line at once and drops the pieces.
func (l *line) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.err, l.dead = err, true
		l.pieces, l.cost = nil, 0
		l.wake()
	}
}

// next waits for the first piece to come due and takes it whole.
func (l *line) next() ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.await(nil); err != nil {
		return nil, err
	}
	b := l.pieces[0].b
	l.drop()
	return b, nil
}

// read waits like next and copies from all pieces that are due.
func (l *line) read(p []byte, expired <-chan struct{}) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.await(expired); err != nil {
		return 0, err
	}
	n, now := 0, time.Now()
	for n < len(p) && len(l.pieces) > 0 && !l.pieces[0].due.After(now) {
		m := copy(p[n:], l.pieces[0].b)
		n += m
		if l.pieces[0].b = l.pieces[0].b[m:]; len(l.pieces[0].b) == 0 {
			l.drop()
		}
		l.cost -= m
	}
	return n, nil
}

// drop removes the first piece. The caller holds mu.
func (l *line) drop() {
	l.cost -= len(l.pieces[0].b) + perPiece
	l.pieces[0].b = nil
	if l.pieces = l.pieces[1:]; len(l.pieces) == 0 {
		l.pieces = nil // lets go of the array
	}
	l.wake()
}

// await returns nil when the first piece is due, or why none will be. The caller holds mu, before and after.
func (l *line) await(expired <-chan struct{}) error {
	for {
		var due time.Time
		switch {
		case l.dead:
			return l.err
		case isClosed(expired):
			return os.ErrDeadlineExceeded
		case len(l.pieces) > 0:
			if due = l.pieces[0].due; time.Until(due) <= 0 {
				return nil
			}
		case l.err != nil:
			if due = l.errDue; time.Until(due) <= 0 {
				return l.err
			}
		default:
			l.pause(nil, expired)
			continue
		}
		timer := time.NewTimer(time.Until(due))
		l.pause(timer.C, expired)
		timer.Stop()
	}
}

// pause releases mu and waits for a change, the timer or the deadline.
func (l *line) pause(timer <-chan time.Time, expired <-chan struct{}) {
	changed := l.changed
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-changed:
	case <-timer:
	case <-expired:
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
