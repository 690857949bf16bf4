package gossip

import (
	"bytes"
	"context"
	"errors"
	"log"
	"log/slog"
	"strings"
	"time"
)

// note is something a delegate has seen and people should know.
type note struct {
	err          error
	id, addr     string
	theirs, ours string
}

const (
	maxNotes = 64
	// noteEvery is how often the same is said about the same node; gossip brings it up many times a second.
	noteEvery = time.Minute
	// maxNoted bounds the memory of what was said.
	maxNoted = 1024
)

func (g *Gossip) noteLoop() {
	type key struct{ err, id string }
	said := make(map[key]time.Time)
	for {
		var n note
		select {
		case <-g.ctx.Done():
			return
		case n = <-g.notes:
		}
		k := key{n.err.Error(), n.id}
		if last, ok := said[k]; ok && time.Since(last) < noteEvery {
			continue
		}
		if len(said) >= maxNoted {
			clear(said)
		}
		said[k] = time.Now()
		switch {
		case errors.Is(n.err, errForeign):
			g.log.Warn("refused: node "+n.id+" at "+n.addr+" belongs to another mesh; check its --join and --data-dir",
				"node", n.id, "addr", n.addr, "its_cluster", n.theirs, "our_cluster", n.ours)
		case errors.Is(n.err, errDuplicate):
			g.log.Error("one node id at two addresses, the second one has to wait: the node has moved and its old address is "+
				"not given up yet, or a data directory was copied",
				"node", n.id, "addr", n.addr, "other_addr", n.theirs)
		default:
			g.log.Warn("ignored: what the node says of itself cannot be read; it may be of a newer version",
				"node", n.id, "addr", n.addr, "err", n.err)
		}
	}
}

// libLines is how many lines of memberlist are passed on per second: it has one for every odd packet.
const libLines = 20

// libLogger makes memberlist's log lines ours. log.Logger serialises the calls of Write.
func (g *Gossip) libLogger() *log.Logger { return log.New(&libWriter{g: g}, "", 0) }

type libWriter struct {
	g      *Gossip
	second time.Time
	lines  int
}

func (w *libWriter) Write(b []byte) (int, error) {
	if w.g.ctx.Err() != nil {
		return len(b), nil // closing its sockets makes it complain about each
	}
	level, text := libLine(b)
	if !w.g.log.Enabled(context.Background(), level) {
		return len(b), nil
	}
	if now := time.Now(); now.Sub(w.second) >= time.Second {
		w.second, w.lines = now, 0
	}
	if w.lines++; w.lines > libLines {
		w.g.metrics.dropped.WithLabelValues("log").Inc()
		return len(b), nil
	}
	w.g.log.Log(context.Background(), level, text, "lib", "memberlist")
	return len(b), nil
}

// libLine splits "[WARN] memberlist: text". Its errors are one level less to us: a packet that could not be sent or read
// is what gossip is made for. What delegates refuse has a line of our own.
func libLine(b []byte) (slog.Level, string) {
	text := string(bytes.TrimSpace(b))
	level := slog.LevelDebug
	if tag, rest, ok := strings.Cut(text, "] "); ok && strings.HasPrefix(tag, "[") {
		text = strings.TrimPrefix(rest, "memberlist: ")
		switch tag[1:] {
		case "ERR", "ERROR":
			level = slog.LevelWarn
		case "WARN":
			level = slog.LevelInfo
		}
	}
	switch {
	case strings.HasPrefix(text, "ignoring alive message"), strings.HasPrefix(text, "Conflicting address"),
		strings.HasPrefix(text, "Failed push/pull merge"):
		level = slog.LevelDebug
	case strings.HasPrefix(text, "discarding stream with unacceptable label"),
		strings.HasPrefix(text, "discarding packet with unacceptable label"),
		strings.HasPrefix(text, "Decrypt packet failed"):
		text = "refused: the sender has another mesh key: " + text
	}
	return level, text
}
