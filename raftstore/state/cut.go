package state

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"kvmesh/raftstore/kv"
)

// Cut is the content as it is at one moment, for readers that take long: a backup. The state goes on meanwhile. It must be
// closed, soon after Gone: Replace and Close of the State wait for that. For one goroutine, but for Gone.
type Cut struct {
	v      *view
	closed bool
}

// Cut takes the present content. A log entry is in it as a whole, or not at all.
func (s *State) Cut() (*Cut, error) {
	v, err := s.acquire()
	if err != nil {
		return nil, err
	}
	return &Cut{v: v}, nil
}

// Close ends the reading. A second Close does nothing.
func (c *Cut) Close() {
	if !c.closed {
		c.closed = true
		c.v.release()
	}
}

// Gone is closed when the state is being replaced or closed: there will be no more of the cut.
func (c *Cut) Gone() <-chan struct{} { return c.v.gen.gone }

// Applied is where the state stood.
func (c *Cut) Applied() Applied { return c.v.applied }

// Namespaces lists the namespaces by id. The wrapped keys are shared and must not be changed.
func (c *Cut) Namespaces() []kv.Namespace {
	all := slices.Clone(c.v.control.Namespaces)
	slices.SortFunc(all, func(a, b kv.Namespace) int { return slices.Compare(a.ID[:], b.ID[:]) })
	return all
}

// Size counts the keys, and the bytes of keys and plaintext values. Keys that have expired count until the sweep deletes
// them.
func (c *Cut) Size() (keys, bytes int64, err error) {
	err = scanSpace(c.v.snap, c.v.bank.namespace, func(_, val []byte) (bool, error) {
		n, err := decodeNamespace(val)
		if err == nil && !n.deleted {
			keys += n.keys
			bytes += n.bytes
		}
		return err == nil, err
	})
	return keys, bytes, err
}

// EachKey calls fn with every key of a namespace, in byte order, expired ones too, until fn returns an error, which it
// returns. A large value is only named. It ends with ErrReplaced once the cut is gone.
func (c *Cut) EachKey(ns kv.NamespaceID, fn func(key string, item *kv.Item) error) error {
	v := c.v
	base := nsKey(nil, v.bank.head, ns)
	values := &walker{v: v, base: nsKey(nil, v.bank.value, ns)}
	err := scan(v.snap, base, prefixEnd(base), func(k, val []byte) (bool, error) {
		select {
		case <-v.gen.gone:
			return false, ErrReplaced
		default:
		}
		var item kv.Item
		h, err := decodeHead(val, &item, true)
		if err != nil {
			return false, err
		}
		if h.separate {
			if item.Value, err = values.next(k[len(base):]); err != nil {
				return false, err
			}
		}
		return true, fn(string(k[len(base):]), &item)
	})
	return errors.Join(err, values.close())
}

// walker reads the separate values of a namespace in step with its heads. Seeking forwards, Pebble steps when it is near.
type walker struct {
	v    *view
	base []byte
	it   *pebble.Iterator // nil before the first value
}

// next is the value of a key, which comes after that of the call before. It is a copy.
func (w *walker) next(key []byte) ([]byte, error) {
	full := append(w.base[:len(w.base):len(w.base)], key...)
	if w.it == nil {
		it, err := w.v.snap.NewIter(&pebble.IterOptions{LowerBound: w.base, UpperBound: prefixEnd(w.base)})
		if err != nil {
			return nil, fmt.Errorf("scan: %w", err)
		}
		w.it = it
	}
	if !w.it.SeekGE(full) || string(w.it.Key()) != string(full) {
		return nil, errors.Join(fmt.Errorf("%w: the value of a key is missing", errCorrupt), w.it.Error())
	}
	val, err := w.it.ValueAndErr()
	if err != nil {
		return nil, fmt.Errorf("scan: %w", err)
	}
	if len(val) == 0 || val[0] != recordVersion {
		return nil, fmt.Errorf("%w: value of %d bytes", errCorrupt, len(val))
	}
	return append([]byte{}, val[1:]...), nil
}

func (w *walker) close() error {
	if w.it == nil {
		return nil
	}
	return w.it.Close()
}
