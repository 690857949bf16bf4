package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
)

const (
	// ballastFile is space that is given back when the disk is full: what is under way then still fits.
	ballastFile = "ballast"
	spacePoll   = time.Second
	// Writes are refused below a sixteenth of the file system, within these bounds. It is what writes in flight, flushes and
	// compactions may take until the refusal has reached everybody.
	minSpace, maxSpace = 4 << 20, 64 << 20
	// ballastShare is the part of that which the ballast takes.
	ballastShare = 4
	// fullFor is how long a full disk that was met in fact counts: a quota does not show in the free space.
	fullFor = 2 * time.Second
	// diskFullRetry is what a refused client is told to wait.
	diskFullRetry = 5 * time.Second
	// infoFresh is how long what another member has said of itself counts.
	infoFresh = 5 * time.Second
	// giveUpEvery is the pause between two attempts to hand leadership over because the disk is full.
	giveUpEvery = 3 * time.Second
)

// Space asks how much of a directory's file system is free for this process, and how large it is, in bytes.
type Space func(dir string) (free, total uint64, err error)

func errDiskFull(why string) error {
	return &kv.Error{
		Code: kv.CodeDiskFull, RetryAfter: diskFullRetry,
		Message: why + "; nothing was written. Make space there: writes are taken again by themselves",
	}
}

// spaceGuard refuses writes before the disk is full, so that what runs anyway finds room: elections, entries of other
// leaders, flushes. It is the voter's own; what the others say is in members.
type spaceGuard struct {
	dir   string
	space Space
	log   func(msg string, args ...any)

	full atomic.Bool
	kick chan struct{} // holds one token when a full disk was met

	mu  sync.Mutex // guards met
	met time.Time  // when a full disk was met last
}

func newSpaceGuard(dir string, space Space, files vfs.FS, log func(string, ...any)) *spaceGuard {
	if space == nil {
		space = func(string) (uint64, uint64, error) { return 1 << 62, 1 << 62, nil }
		if files == vfs.Default {
			space = statfs
		}
	}
	return &spaceGuard{dir: dir, space: space, log: log, kick: make(chan struct{}, 1)}
}

// meet notes that a write met a full disk.
func (g *spaceGuard) meet() {
	g.mu.Lock()
	g.met = time.Now()
	g.mu.Unlock()
	g.full.Store(true)
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

func (g *spaceGuard) recentlyMet() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.met) < fullFor
}

// look compares the free space with the limit, gives the ballast up or takes it again. It is called by one goroutine.
func (g *spaceGuard) look() error {
	free, total, err := g.space(g.dir)
	if err != nil {
		return fmt.Errorf("free space of %s: %w", g.dir, err)
	}
	limit := min(max(total/16, minSpace), maxSpace)
	path, size := filepath.Join(g.dir, ballastFile), int64(limit/ballastShare)
	has := int64(0)
	if info, err := os.Stat(path); err == nil {
		has = info.Size()
	}
	was := g.full.Load()
	switch {
	case free < limit || g.recentlyMet():
		if !was || has > 0 {
			g.log("the disk is nearly full, writes are refused", "dir", g.dir, "free_bytes", free, "limit_bytes", limit)
		}
		g.full.Store(true)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	case was && free < limit+limit/ballastShare+uint64(max(size-has, 0)): // enough, also once the ballast is back
		return nil
	case was:
		g.log("there is space on the disk again", "dir", g.dir, "free_bytes", free)
		g.full.Store(false)
	}
	if has < size && free < 1<<61 {
		return allocate(path, size)
	}
	return nil
}

// diskIsFull is called by whoever met a full disk.
func (s *Store) diskIsFull() { s.space.meet() }

// watchSpace looks at the disk all the time, and gives leadership away while it is full.
func (s *Store) watchSpace(ctx context.Context) {
	tick := time.NewTicker(spacePoll)
	defer tick.Stop()
	var since, tried time.Duration // full since; handed over last
	for {
		if err := s.space.look(); err != nil {
			s.opts.Logger.Warn("the disk", "err", err)
		}
		s.members.review(s)
		if full := s.space.full.Load(); full && since == 0 {
			since = s.mono()
		} else if !full {
			since = 0
		}
		if since > 0 && s.mono() >= tried && s.giveLeadershipAway(ctx, since) {
			tried = s.mono() + giveUpEvery
		}
		select {
		case <-tick.C:
		case <-s.space.kick:
		case <-ctx.Done():
			return
		}
	}
}

// giveLeadershipAway hands leadership to a voter that has said after since that it has space, if there is one, and reports
// whether it has tried. Otherwise this node goes on leading: for reads that needs no space. With fewer voters left than a majority the
// other one could not commit the entry with which it begins, and nobody could read what is current. Disks that are full often
// are one disk, hence since.
func (s *Store) giveLeadershipAway(ctx context.Context, since time.Duration) bool {
	if _, self := s.Leader(); !self {
		return false
	}
	term, _ := s.leaderTerm()
	var to raft.ServerID
	var match uint64
	voters, roomy := s.voters(), 0
	for _, id := range voters {
		if info, fresh := s.members.after(s, string(id), since); string(id) == s.opts.NodeID || !fresh || info.DiskFull {
			continue
		}
		roomy++
		if a, ok := s.acks.of(term, id); ok && s.heard(a) && (to == "" || a.match > match) {
			to, match = id, a.match
		}
	}
	if to == "" || roomy < len(voters)/2+1 {
		return false
	}
	s.opts.Logger.Warn("handing leadership over, because the disk is full", "to", to)
	ctx, cancel := context.WithTimeout(ctx, giveUpEvery)
	defer cancel()
	err := s.handOver(ctx, func() raft.Future { return s.raft.LeadershipTransferToServer(to, raft.ServerAddress(to)) })
	if err != nil && ctx.Err() == nil {
		s.opts.Logger.Warn("leadership could not be handed over", "to", to, "err", err)
	}
	return true
}
