package node

import (
	"time"

	"kvmesh/raftstore/kv"
)

// heard notes a hint of a revision. It must not block.
func (f *follower) heard(epoch kv.Epoch, rev kv.Revision) {
	if f.exists(epoch, rev) {
		f.metrics.early.Inc()
	}
}

// exists notes that a revision exists, and reports whether that is news.
func (f *follower) exists(epoch kv.Epoch, rev kv.Revision) bool {
	if cur, w := f.cache.Position(); cur != epoch || rev <= w {
		return false
	}
	next := &heardOf{rev, f.cache.Now()}
	for {
		old := f.heardTo.Load()
		if (old != nil && rev <= old.rev && !f.disproved(old)) || f.heardTo.CompareAndSwap(old, next) {
			break
		}
	}
	select {
	case f.hinted <- struct{}{}:
	default:
	}
	return true
}

// heardOf is a revision that somebody spoke of. Gossip can speak of any.
type heardOf struct {
	rev kv.Revision
	at  time.Duration // of the node's own clock
}

// disproved says that what was heard of does not exist, or is of an epoch that has passed: this node has been proven
// current after it was heard, so W has reached all that existed then.
func (f *follower) disproved(h *heardOf) bool {
	_, _, proof, proven := f.cache.Proof()
	return proven && h.at < proof
}

// lag is how many revisions were heard of and not applied yet.
func (f *follower) lag() float64 {
	h := f.heardTo.Load()
	if h == nil || f.disproved(h) {
		return 0
	}
	if _, w := f.cache.Position(); h.rev > w {
		return float64(h.rev - w)
	}
	return 0
}
