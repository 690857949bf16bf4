package hitpath

import (
	"net/http"
	"sync/atomic"
	"time"
)

// phase is what a connection is doing, as the reaper sees it.
type phase uint8

const (
	phaseNew   phase = iota // accepted, nothing has come
	phaseIdle               // between two requests
	phaseHead               // a head has begun
	phaseWrite              // a piece of an answer is being written
	phaseBusy               // a handler is at work, and has its own limits
	phaseGone               // closed, or handed over
)

// The limits, in seconds; they are those of api.NewServer. A connection may overstay them by a second.
var limits = [...]uint64{phaseNew: 10, phaseIdle: 90, phaseHead: 10, phaseWrite: 30}

// standing is a phase and the tick in which it began, in one word: the reaper must not see one without the other.
type standing struct{ word atomic.Uint64 }

func (st *standing) set(p phase, tick uint64) { st.word.Store(tick<<3 | uint64(p)) }

// headBegins turns phaseNew into phaseHead: the time that a client has for its first head counts from the beginning.
func (st *standing) headBegins(tick uint64) {
	if old := st.word.Load(); phase(old&7) == phaseNew {
		st.word.CompareAndSwap(old, old&^7|uint64(phaseHead))
		return
	}
	st.set(phaseHead, tick)
}

// handshaken begins phaseNew again, unless the standing has ended.
func (st *standing) handshaken(tick uint64) {
	if old := st.word.Load(); phase(old&7) == phaseNew {
		st.word.CompareAndSwap(old, tick<<3|uint64(phaseNew))
	}
}

// gone ends the standing, and reports false when somebody else has.
func (st *standing) gone() bool { return phase(st.word.Swap(uint64(phaseGone))&7) != phaseGone }

// overdue ends the standing if its phase has lasted too long. The owner may be leaving the phase at this moment: whoever
// changes the word first wins.
func (st *standing) overdue(tick uint64) bool {
	old := st.word.Load()
	p := phase(old & 7)
	if int(p) >= len(limits) || tick-old>>3 <= limits[p] {
		return false
	}
	return st.word.CompareAndSwap(old, uint64(phaseGone))
}

// atRest ends the standing if nothing is asked or being answered.
func (st *standing) atRest() bool {
	old := st.word.Load()
	p := phase(old & 7)
	return (p == phaseNew || p == phaseIdle) && st.word.CompareAndSwap(old, uint64(phaseGone))
}

// keepTime counts seconds, renews the Date, and closes the connections that are overdue, until the server ends.
func (s *Server) keepTime() {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case now := <-t.C:
			s.setDate(now)
			tick := s.tick.Add(1)
			var cut int
			s.eachConn(func(c *conn) bool {
				late := c.standing.overdue(tick)
				if late {
					cut++
				}
				return late
			}, (*conn).wake)
			s.metrics.cut.Add(float64(cut))
			s.abandon(tick)
		case <-s.ctx.Done():
			return
		}
	}
}

// leaveTicks is for how many seconds a request is carried on whose client has ended its side. It may wait for the answer all the
// same, as somebody does who has nothing more to ask, or it may have gone: the two look alike until something is written.
const leaveTicks = 2

// abandon ends requests that handlers have been looking at for a while, and whose clients have left: the fill that such a
// reader alone waits for ends with it.
func (s *Server) abandon(tick uint64) {
	var waiting []*conn
	s.mu.Lock()
	for c := range s.conns {
		if old := c.standing.word.Load(); phase(old&7) == phaseBusy && tick-old>>3 >= leaveTicks && c.abandon.Load() != nil {
			waiting = append(waiting, c)
		}
	}
	s.mu.Unlock()
	for _, c := range waiting {
		if !hasLeft(c.base.Raw()) {
			continue
		}
		if cancel := c.abandon.Swap(nil); cancel != nil {
			(*cancel)()
			s.metrics.abandoned.Inc()
		}
	}
}

// setDate makes the Date header of a moment.
func (s *Server) setDate(now time.Time) {
	line := append([]byte("Date: "), now.UTC().Format(http.TimeFormat)...)
	line = append(line, "\r\n"...)
	s.date.Store(&line)
}
