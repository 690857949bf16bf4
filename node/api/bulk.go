package api

import (
	"errors"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strings"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

// maxBulkItems is how many items one bulk call has, as Workers KV has it: puts, deletes and gets together.
const maxBulkItems = 10_000

// bulkDoc is a bulk call while its document is read.
type bulkDoc struct {
	s     *surface
	items itemReader
	// puts and deletes are the outcomes, in the order of the document; gets are the keys to be read afterwards.
	puts, deletes []*outcome
	gets          []*outcome
	n             int   // items so far
	err           error // that ended the document early
}

var errStopped = errors.New("bulk: the service takes no more writes")

// outcome is what became of one item. Whoever carries it out writes res and err, before WriteEach returns.
type outcome struct {
	key string
	put bool
	res WriteResult
	err error
}

// bulk answers POST of a namespace: puts and deletes in the order of the document, then gets, each for itself. Items go to
// the store while the document is still being read.
func (s *surface) bulk(c *call) error {
	ttl, err := c.q.cacheTTL()
	if err != nil {
		return err
	}
	ctx, touch, stop := idleContext(c.r.Context(), s.timeout)
	defer stop()
	body, err := s.docBody(c, touch)
	if err != nil {
		return err
	}
	ns, err := s.namespace(ctx, c)
	if err != nil {
		return err
	}
	d := &bulkDoc{s: s, items: itemReader{
		r: jsonstream.New(body), now: s.svc.MeshTime, ns: ns,
		stage: func(req StageRequest) (Staged, error) { return s.svc.Stage(ctx, req) },
	}}
	if err := s.svc.WriteEach(ctx, d.writes(touch)); err != nil {
		return err // nothing was taken
	}
	if d.err != nil {
		body.drain()
		if c.r.ProtoMajor == 1 {
			c.w.Header().Set("Connection", "close")
		}
	}
	return s.answerBulk(ctx, c, d, GetRequest{Namespace: ns, CacheTTL: ttl, Consistency: c.demands}, touch)
}

// writes gives the writes of the document as they come. What ends it early is in err afterwards.
func (d *bulkDoc) writes(touch func()) iter.Seq2[Write, func(WriteResult, error)] {
	return func(yield func(Write, func(WriteResult, error)) bool) {
		hand := func(list *[]*outcome, put bool) func(int) error {
			members := deleteMembers
			if put {
				members = putMembers
			}
			return func(int) error {
				it, o, err := d.item(list, members, !put)
				if err != nil {
					return err
				}
				w, err := d.items.write(it, put)
				if err != nil {
					o.err = err
					return nil
				}
				told := func(res WriteResult, err error) {
					touch()
					if kv.CodeOf(err) == kv.CodeConditionFailed {
						err = conditionFailed(asError(err), it.demanded)
					} else if err != nil {
						err = writeFailed(err)
					}
					o.res, o.err = res, err
				}
				if !yield(w, told) {
					return errStopped
				}
				return nil
			}
		}
		d.err = docError(readLists(d.items.r, map[string]func(int) error{
			"put": hand(&d.puts, true), "delete": hand(&d.deletes, false), "get": d.get,
		}))
	}
}

// readLists reads a document of lists; each has a function that reads one element. A list that is null is none.
func readLists(r *jsonstream.Reader, lists map[string]func(int) error) error {
	seen := make(map[string]bool)
	err := r.Object(func(name string) error {
		element, ok := lists[name]
		switch {
		case !ok:
			return kv.FieldErrorf(kv.CodeInvalidBody, shown(name), "the body has the member %q; there are %s",
				shown(name), strings.Join(slices.Sorted(maps.Keys(lists)), ", "))
		case seen[name]:
			return kv.FieldErrorf(kv.CodeInvalidBody, name, "the body has %q twice; put all items into one list", name)
		}
		seen[name] = true
		if kind, err := r.Kind(); err != nil {
			return err
		} else if kind == jsonstream.Null {
			return r.Skip()
		}
		err := r.Array(element)
		if value := new(jsonstream.ValueError); errors.As(err, &value) {
			return kv.FieldErrorf(kv.CodeInvalidBody, name, "%q is wrong: %v", name, value)
		}
		return err
	})
	if err == nil {
		err = r.End()
	}
	return err
}

// item reads one item of a list and makes room for its outcome.
func (d *bulkDoc) item(list *[]*outcome, members known, plain bool) (*item, *outcome, error) {
	if d.n++; d.n > maxBulkItems {
		return nil, nil, kv.FieldErrorf(kv.CodeTooLarge, "body",
			"the call has more than %d items; that is the limit for put, delete and get together: send the rest in another call", maxBulkItems)
	}
	it, err := d.items.item(members, plain)
	if err != nil {
		return nil, nil, err
	}
	o := &outcome{key: it.key, put: list == &d.puts}
	*list = append(*list, o)
	return it, o, nil
}

func (d *bulkDoc) get(int) error {
	it, o, err := d.item(&d.gets, getMembers, true)
	if err != nil {
		return err
	}
	o.err = it.err
	return nil
}

// failure is the error of the whole call: what ended the document early, or, when every write failed because of the mesh,
// the first such error, so that whoever looks at the status only does not take the call for carried out.
func (d *bulkDoc) failure() error {
	if d.err != nil {
		return d.err
	}
	var first error
	for _, list := range [][]*outcome{d.puts, d.deletes} {
		for _, o := range list {
			switch {
			case o.err == nil || statusOf(asError(o.err).Code) < http.StatusInternalServerError:
				return nil
			case first == nil:
				first = o.err
			}
		}
	}
	return first
}

// bookmark is the newest state that the writes were acknowledged at.
func (d *bulkDoc) bookmark() (b kv.Bookmark) {
	for _, list := range [][]*outcome{d.puts, d.deletes} {
		for _, o := range list {
			if o.err == nil {
				b = newer(b, kv.Bookmark{Epoch: o.res.Epoch, Revision: o.res.AsOf})
			}
		}
	}
	return b
}

func newer(a, b kv.Bookmark) kv.Bookmark {
	if c := a.Epoch.Compare(b.Epoch); c > 0 || c == 0 && a.Revision >= b.Revision {
		return a
	}
	return b
}
