package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

// keptTxnBytes of values are kept in plaintext for this node's cache while a transaction's document is read; what is beyond
// it, this node has to fetch when it is read.
const keptTxnBytes = 1 << 20

// txnDoc is a transaction while its document is read.
type txnDoc struct {
	s     *surface
	items itemReader
	req   TxnRequest
	puts  []bool // of req.Writes: whether it is a put
	// seen are the keys that are compared, and those that are written.
	seen   [2]map[txnKey]struct{}
	inline int   // bytes of values that go into the log
	kept   int64 // bytes of values in plaintext
}

type txnKey struct {
	ns  kv.NamespaceID
	key string
}

// txn answers a transaction: all of it is carried out, or, when a comparison does not hold, nothing.
func (s *surface) txn(c *call) error {
	ctx, touch, stop := idleContext(c.r.Context(), s.timeout)
	defer stop()
	body, err := s.docBody(c, touch)
	if err != nil {
		return err
	}
	d := &txnDoc{s: s, seen: [2]map[txnKey]struct{}{{}, {}}}
	d.items = itemReader{r: jsonstream.New(body), now: s.svc.MeshTime, resolve: d.resolver(ctx), stage: d.stage(ctx)}
	if err := docError(d.read()); err != nil {
		body.drain()
		if c.r.ProtoMajor == 1 {
			c.w.Header().Set("Connection", "close")
		}
		return err
	}
	res, err := s.svc.Txn(ctx, d.req)
	if err != nil {
		return writeFailed(err)
	}
	bookmarkHeader(c.w.Header(), res.Epoch, res.AsOf)
	if len(res.Conflicts) > 0 {
		return d.conflict(c, res)
	}
	return d.answer(c, res)
}

// resolver finds namespaces, each once.
func (d *txnDoc) resolver(ctx context.Context) func(string) (kv.Namespace, error) {
	known := make(map[string]kv.Namespace)
	return func(ref string) (kv.Namespace, error) {
		if ns, ok := known[ref]; ok {
			return ns, nil
		}
		if err := validateRef(ref); err != nil {
			return kv.Namespace{}, err
		}
		ns, err := d.s.svc.Namespace(ctx, ref)
		if err == nil {
			known[ref] = ns
		}
		return ns, err
	}
}

// stage seals a value. It stops as soon as the values that go into the log are more than an entry holds.
func (d *txnDoc) stage(ctx context.Context) func(StageRequest) (Staged, error) {
	return func(req StageRequest) (Staged, error) {
		req.Forget = d.kept >= keptTxnBytes
		v, err := d.s.svc.Stage(ctx, req)
		if err != nil {
			return nil, err
		}
		if !req.Forget {
			d.kept += v.Size()
		}
		if v.Size() <= kv.MaxInlineValueBytes {
			d.inline += int(v.Size())
		}
		if d.inline > kv.MaxBatchBytes {
			return nil, kv.FieldErrorf(kv.CodeTooLarge, "value",
				"the values of the transaction have more than %d bytes, those of more than %d bytes not counted; that is the limit: split it into smaller ones",
				kv.MaxBatchBytes, kv.MaxInlineValueBytes)
		}
		return v, nil
	}
}

// read reads the document. The first thing that is wrong with any item ends it.
func (d *txnDoc) read() error {
	err := readLists(d.items.r, map[string]func(int) error{
		"compare": func(i int) error { return d.element("compare", i, compareMembers, d.compare) },
		"put":     func(i int) error { return d.element("put", i, txnPutMembers, d.write(true)) },
		"delete":  func(i int) error { return d.element("delete", i, txnDeleteMembers, d.write(false)) },
	})
	if err == nil && len(d.req.Compare)+len(d.req.Writes) == 0 {
		err = kv.FieldErrorf(kv.CodeInvalidBody, "body", "the transaction is empty; give at least one of compare, put and delete")
	}
	return err
}

// element reads one element of a list, and names it in whatever is wrong with it.
func (d *txnDoc) element(list string, i int, members known, use func(*item) error) error {
	if len(d.req.Compare)+len(d.req.Writes) == kv.MaxBatchOps {
		return kv.FieldErrorf(kv.CodeTooLarge, "body",
			"the transaction has more than %d operations, comparisons, puts and deletes together; that is the limit: split it into smaller ones", kv.MaxBatchOps)
	}
	it, err := d.items.item(members, false)
	if err != nil {
		return err
	}
	if err = it.err; err == nil {
		err = use(it)
	}
	if err == nil {
		return nil
	}
	e := *asError(err)
	at := list + "[" + strconv.Itoa(i) + "]"
	if e.Field != "" {
		at += "." + e.Field
	}
	e.Field = at
	if e.Code == kv.CodeInternal { // with the cause, for the log
		return fmt.Errorf("%w: %w", &e, err)
	}
	return &e
}

func (d *txnDoc) compare(it *item) error {
	if it.demanded == "" {
		return kv.FieldErrorf(kv.CodeInvalidBody, "", "the comparison demands nothing; give one of revision, exists and etag")
	}
	if err := d.once(0, "compared", it); err != nil {
		return err
	}
	d.req.Compare = append(d.req.Compare, TxnCompare{Namespace: it.ns, Key: it.key, Cond: it.cond})
	return nil
}

func (d *txnDoc) write(put bool) func(*item) error {
	return func(it *item) error {
		if err := d.once(1, "written", it); err != nil {
			return err
		}
		w, err := d.items.write(it, put)
		if err != nil {
			return err
		}
		d.req.Writes, d.puts = append(d.req.Writes, w), append(d.puts, put)
		return nil
	}
}

// once refuses a key that stands twice among the comparisons, or among the writes.
func (d *txnDoc) once(which int, what string, it *item) error {
	k := txnKey{it.ns.ID, it.key}
	if _, twice := d.seen[which][k]; twice {
		return kv.FieldErrorf(kv.CodeInvalidBody, "key", "the key %q of namespace %q is %s twice in one transaction; once is enough",
			shown(it.key), shown(it.ns.Title), what)
	}
	d.seen[which][k] = struct{}{}
	return nil
}

// txnItemDoc is what became of one key.
type txnItemDoc struct {
	Namespace  string      `json:"namespace"`
	Key        string      `json:"key"`
	Revision   kv.Revision `json:"revision"`
	ETag       string      `json:"etag,omitempty"`
	Expiration int64       `json:"expiration,omitempty"`
}

// answer names the revision of every write, in the order of the lists.
func (d *txnDoc) answer(c *call, res *TxnResult) error {
	doc := struct {
		Revision kv.Revision  `json:"revision"` // the last one that was taken, 0 when nothing changed
		Bookmark string       `json:"bookmark"`
		Put      []txnItemDoc `json:"put"`
		Delete   []txnItemDoc `json:"delete"`
	}{res.Revision, kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf}.String(), []txnItemDoc{}, []txnItemDoc{}}
	if len(res.Writes) != len(d.req.Writes) {
		return errors.New("transaction: not every write has an outcome")
	}
	for i, w := range d.req.Writes {
		r := res.Writes[i]
		it := txnItemDoc{Namespace: w.Namespace.Title, Key: w.Key, Revision: r.Revision}
		if !d.puts[i] {
			doc.Delete = append(doc.Delete, it)
			continue
		}
		it.ETag, it.Expiration = bareETag(res.Epoch, r.Revision), r.Expiry
		doc.Put = append(doc.Put, it)
	}
	if res.Revision != 0 {
		c.w.Header().Set("Kv-Revision", strconv.FormatUint(uint64(res.Revision), 10))
	}
	writeJSON(c.w, c.r, http.StatusOK, doc)
	return nil
}

// conflict names every comparison that does not hold, with the present revision of its key.
func (d *txnDoc) conflict(c *call, res *TxnResult) error {
	doc := struct {
		errorJSON
		Conflicts []txnItemDoc `json:"conflicts"`
		Bookmark  string       `json:"bookmark"`
	}{Bookmark: kv.Bookmark{Epoch: res.Epoch, Revision: res.AsOf}.String()}
	for _, x := range res.Conflicts {
		if x.Index < 0 || x.Index >= len(d.req.Compare) {
			return errors.New("transaction: a conflict of no comparison")
		}
		cmp := d.req.Compare[x.Index]
		it := txnItemDoc{Namespace: cmp.Namespace.Title, Key: cmp.Key, Revision: x.Revision}
		if x.Revision != 0 {
			it.ETag = bareETag(res.Epoch, x.Revision)
		}
		doc.Conflicts = append(doc.Conflicts, it)
	}
	first := doc.Conflicts[0]
	now := "does not exist"
	if first.Revision != 0 {
		now = fmt.Sprintf("is at revision %d", first.Revision)
	}
	more := ""
	if n := len(doc.Conflicts) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	e := kv.FieldErrorf(kv.CodeConflict, fmt.Sprintf("compare[%d]", res.Conflicts[0].Index),
		"nothing was written: the key %q of namespace %q %s%s; read again and decide anew", shown(first.Key), shown(first.Namespace), now, more)
	doc.Error = errorBody(e)
	s := d.s
	s.note(c, e)
	writeJSON(c.w, c.r, statusOf(e.Code), doc)
	return nil
}
