package state

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"kvmesh/raftstore/kv"
)

// Bounds of one page.
const (
	// maxPageBytes cuts a page whose values have grown to this size; the last one may exceed it.
	maxPageBytes = 4 << 20
	// maxSkipped is how many expired keys a page may pass over before it is cut. A page that is empty by then goes on up to
	// maxSkippedEmpty, because an empty page that is not the last one surprises clients.
	maxSkipped      = 10_000
	maxSkippedEmpty = 200_000
)

// ListQuery asks for one page of a namespace's keys, in the order of their bytes.
type ListQuery struct {
	Namespace kv.NamespaceID
	Prefix    string
	// Delimiter groups the keys that share the part up to and including its first occurrence after Prefix; empty = none.
	Delimiter string
	// After is exclusive: the Next of the page before, or any key. When it is a group, the whole group is passed over.
	After  string
	Limit  int   // keys and groups together; at most, and when 0, kv.MaxListLimit
	Values bool  // give the values up to kv.MaxInlineValueBytes
	Now    int64 // unix seconds of mesh time: keys that have expired by then, or by the state's own mesh time, are left out
}

// ListItem is one key of a page. Item.Value is set only when the query asked for values and the value is small enough.
type ListItem struct {
	Key  string
	Item kv.Item
}

// ListResult is one page. Keys and groups interleave in byte order, each in its own list.
type ListResult struct {
	Items    []ListItem
	Prefixes []string // the groups that hold at least one key
	Next     string   // After of the next page; empty when Complete
	Complete bool     // nothing follows
	Applied  Applied
}

// List reads one page. A group is stepped over by one seek, however many keys it has. A page may be shorter than Limit,
// and rarely empty, without being the last: after about 4 MiB of values, and after long runs of expired keys.
func (s *State) List(q ListQuery) (_ ListResult, err error) {
	defer func() { err = asDamage(err) }()
	defer recovered(&err)
	v, err := s.acquire()
	if err != nil {
		return ListResult{}, err
	}
	defer v.release()
	if err := v.namespace(q.Namespace); err != nil {
		return ListResult{Applied: v.applied}, err
	}
	if q.Limit <= 0 || q.Limit > kv.MaxListLimit {
		q.Limit = kv.MaxListLimit
	}
	q.Now = max(q.Now, v.applied.MeshTime/1000) // a reader's clock may be behind what it reads
	l := lister{v: v, q: q, base: nsKey(nil, v.bank.head, q.Namespace)}
	l.res.Applied = v.applied
	from, to := l.bounds()
	it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return ListResult{}, fmt.Errorf("list: %w", err)
	}
	if err := errors.Join(l.walk(it), it.Error(), it.Close()); err != nil {
		return ListResult{}, fmt.Errorf("list: %w", err)
	}
	return l.res, nil
}

// lister is the state of one page.
type lister struct {
	v       *view
	q       ListQuery
	base    []byte // the space of the namespace's heads
	res     ListResult
	count   int
	bytes   int
	skipped int
	last    string // the newest key or group in the page
}

// bounds are those of the scan. The page begins behind After, and behind the whole group if After is one.
func (l *lister) bounds() (from, to []byte) {
	from = append(append([]byte(nil), l.base...), l.q.Prefix...)
	to = prefixEnd(from)
	if l.q.After == "" {
		return from, to
	}
	after := append(append([]byte(nil), l.base...), l.q.After...)
	if g, ok := l.group(l.q.After); ok && g == l.q.After {
		after = prefixEnd(after)
	} else {
		after = append(after, 0)
	}
	if string(after) > string(from) {
		from = after
	}
	if string(from) > string(to) {
		from = to
	}
	return from, to
}

// group returns the group that a key belongs to.
func (l *lister) group(key string) (string, bool) {
	if l.q.Delimiter == "" || !strings.HasPrefix(key, l.q.Prefix) {
		return "", false
	}
	i := strings.Index(key[len(l.q.Prefix):], l.q.Delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(l.q.Prefix)+i+len(l.q.Delimiter)], true
}

// walk fills the page. Once it is full, it looks for one more living key, to know whether anything follows.
func (l *lister) walk(it *pebble.Iterator) error {
	for ok := it.First(); ok; {
		raw, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		key := string(it.Key()[len(l.base):])
		full := l.count >= l.q.Limit || l.bytes >= maxPageBytes
		var item kv.Item
		h, err := decodeHead(raw, nil, false)
		if err != nil {
			return err
		}
		group, grouped := l.group(key)
		switch {
		case expired(h.expiry, l.q.Now):
			if l.skip(key, grouped && group == key) {
				return nil
			}
			ok = it.Next()
			continue
		case full:
			l.res.Next = l.last
			return nil
		case grouped:
			l.res.Prefixes = append(l.res.Prefixes, group)
			l.last = group
			ok = it.SeekGE(prefixEnd(append(append([]byte(nil), l.base...), group...)))
		default:
			if _, err := decodeHead(raw, &item, l.wants(h)); err != nil {
				return err
			}
			if h.separate && l.wants(h) {
				if item.Value, err = l.v.value(l.q.Namespace, key); err != nil {
					return err
				}
			}
			l.bytes += len(item.Value)
			l.res.Items = append(l.res.Items, ListItem{Key: key, Item: item})
			l.last = key
			ok = it.Next()
		}
		l.count++
	}
	l.res.Complete = it.Error() == nil
	return nil
}

// wants says whether the page carries the value of a key.
func (l *lister) wants(h head) bool { return l.q.Values && h.size <= kv.MaxInlineValueBytes }

// skip counts an expired key and reports whether the page must end at it. The next page then begins behind it; not if the
// key has the very name of its group, because that name as After would pass over the group.
func (l *lister) skip(key string, isGroup bool) bool {
	l.skipped++
	bound := maxSkipped
	if l.count == 0 {
		bound = maxSkippedEmpty
	}
	if l.skipped < bound || isGroup {
		return false
	}
	l.res.Next = key
	return true
}
