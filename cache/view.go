package cache

import (
	"cmp"
	"maps"
	"slices"

	"kvmesh/raftstore/feed"
	"kvmesh/raftstore/kv"
)

// view is what a node knows of the history, as one immutable value: a reader that loads it sees an epoch, a watermark, a
// proof and the floors that belong together.
//
// Readers load the view first and the entry after it, never the other way round: every record at or below w has been
// marked before the view that says w was published, so an unmarked entry that is found afterwards equals its key's state
// at w, and f is a moment at which nothing beyond w had been committed.
type view struct {
	epoch  kv.Epoch
	hasher feed.Hasher
	w      kv.Revision // every change at or below w has been applied to the cache
	s      kv.Revision // seen: the marking of changes up to s has begun; s ≥ w
	f      Mono        // the moment up to which the feed has proven this node current
	floors floors
	hinted map[kv.NamespaceID]floor // told by gossip only, above w; never changed in place
	past   *past                    // the epoch before this one, for the ages of its entries
}

// past is what is left of a superseded epoch.
type past struct {
	epoch  kv.Epoch
	hasher feed.Hasher
	f      Mono
	floors floors
}

// floor says that anything may have changed at rev: entries with a smaller AsOf count as marked, and their proof ends at f.
type floor struct {
	rev kv.Revision
	f   Mono // F when the floor was set
	at  Mono // when it was set: the MarkedAt of what lies below
}

const (
	// maxFloors bounds the list of one scope; merging two keeps the larger revision and the smaller f.
	maxFloors = 4
	// maxScopes bounds the namespaces with floors of their own; beyond it their floors become floors for everything.
	maxScopes = 1024
	// maxHinted bounds the namespaces with a hinted floor. Beyond it a hint is forgotten, as hints may be.
	maxHinted = 256
)

// floorAbove finds the floors above asOf that cover ns, those that were only hinted included.
func (v *view) floorAbove(ns kv.NamespaceID, asOf kv.Revision) (floor, bool) {
	best, ok := v.floors.above(ns, asOf)
	if x, hinted := v.hinted[ns]; hinted && x.rev > asOf {
		best, ok = join(best, x, ok), true
	}
	return best, ok
}

// hint adds a floor that gossip told. It stays apart from the floors of the feed: the leader's answer can disprove it,
// and however many there are, they never become a floor for everything. One a namespace is enough: the larger revision,
// the smaller f.
func (v *view) hint(ns kv.NamespaceID, x floor) {
	next := make(map[kv.NamespaceID]floor, len(v.hinted)+1)
	for id, y := range v.hinted {
		if y.rev > v.w { // else the feed has told all of it by now
			next[id] = y
		}
	}
	if y, ok := next[ns]; ok {
		rev := max(x.rev, y.rev)
		x = join(x, y, true)
		x.rev = rev
	} else if len(next) >= maxHinted {
		return
	}
	next[ns] = x
	v.hinted = next
}

// floors are immutable; with returns a changed copy.
type floors struct {
	all []floor // ascending by rev
	ns  map[kv.NamespaceID][]floor
}

// above finds the floors above asOf that cover ns and combines them: the smallest f, the earliest moment.
func (fl floors) above(ns kv.NamespaceID, asOf kv.Revision) (floor, bool) {
	best, ok := lowest(fl.all, asOf, floor{}, false)
	if len(fl.ns) > 0 {
		best, ok = lowest(fl.ns[ns], asOf, best, ok)
	}
	return best, ok
}

func lowest(list []floor, asOf kv.Revision, best floor, ok bool) (floor, bool) {
	for _, x := range list {
		if x.rev <= asOf {
			continue
		}
		best, ok = join(best, x, ok), true
	}
	return best, ok
}

// join combines two floors above the same entry: its proof ends at the smaller f. Without ok there is only x.
func join(best, x floor, ok bool) floor {
	if !ok {
		return x
	}
	best.f, best.at = min(best.f, x.f), min(best.at, x.at)
	return best
}

// withAll adds a floor for everything.
func (fl floors) withAll(x floor) floors {
	return floors{all: insertFloor(fl.all, x), ns: fl.ns}
}

// withNamespace adds a floor for one namespace.
func (fl floors) withNamespace(ns kv.NamespaceID, x floor) floors {
	return fl.withNamespaces([]kv.Floor{{Namespace: ns, Revision: x.rev}}, x.f, x.at)
}

// withNamespaces adds a floor for each namespace of a list, all of the same f and moment.
func (fl floors) withNamespaces(list []kv.Floor, f, at Mono) floors {
	if len(list) == 0 {
		return fl
	}
	next := floors{all: fl.all, ns: maps.Clone(fl.ns)}
	if next.ns == nil {
		next.ns = make(map[kv.NamespaceID][]floor, len(list))
	}
	for _, x := range list {
		next.ns[x.Namespace] = insertFloor(next.ns[x.Namespace], floor{x.Revision, f, at})
	}
	if len(next.ns) <= maxScopes {
		return next
	}
	x := floor{f: f, at: at}
	for _, list := range next.ns { // rare: forget whose they were, keep that they are
		for _, y := range list {
			rev := max(x.rev, y.rev)
			x = join(x, y, true)
			x.rev = rev
		}
	}
	return floors{all: insertFloor(next.all, x)}
}

// insertFloor returns list with x in order; list itself is not changed. A floor that is known already, and one for which
// there is no room below a higher one, lend that one their f where it is smaller. Of the floors that the feed tells one
// after the other it never is, so applying a record again changes nothing. When the list is full, its two oldest become
// one.
func insertFloor(list []floor, x floor) []floor {
	pos, known := slices.BinarySearchFunc(list, x.rev, func(y floor, rev kv.Revision) int { return cmp.Compare(y.rev, rev) })
	if known || (len(list) >= maxFloors && pos < len(list)) {
		next := slices.Clone(list)
		next[pos] = join(next[pos], x, true)
		return next
	}
	next := slices.Insert(slices.Clone(list), pos, x)
	if len(next) > maxFloors {
		next[1] = join(next[1], next[0], true)
		next = next[1:]
	}
	return next
}
