package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"kvmesh/cache"
	"kvmesh/node/api"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// backups makes backups of the mesh and restores them. A voter makes one from its own state while everything goes on; an
// edge passes on what the nearest voter makes. Any node restores: it opens the backup and sends what is in it to the
// leader, and large values to the voters.
type backups struct {
	self     string
	version  string
	store    *raftstore.Store // nil on edges
	blobs    *blobTransfer
	dir      *directory
	dialer   *peer.Dialer
	rpc      *peer.Client
	proposer *proposer
	control  *controlState
	cache    *cache.Cache
	clock    *meshClock
	wall     func() time.Time
	kek      *seal.KEK
	log      *slog.Logger
	metrics  *prometheus.CounterVec // kind, result

	// leaving ends when the node stops: what may take hours is not waited for then.
	leaving context.Context
	slots   chan struct{} // one token for each backup that is being made here
}

const (
	// maxBackups bounds the backups that a voter makes at a time: each reads all of its disk.
	maxBackups = 2
	// backupFresh bounds the wait for a state that holds everything acknowledged before.
	backupFresh = 10 * time.Second
	// backupIdle ends an exchange between two nodes on which nothing moves.
	backupIdle = time.Minute
	// backupChunk is the largest piece on its way between two nodes.
	backupChunk = 256 << 10
)

var _ api.Backups = (*backups)(nil)

func newBackupMetrics(reg prometheus.Registerer) *prometheus.CounterVec {
	m := promauto.With(reg).NewCounterVec(prometheus.CounterOpts{
		Name: "kvmesh_backups_total",
		Help: "Backups made here (kind save) and restored through this node (kind restore), by result: ok, failed.",
	}, []string{"kind", "result"})
	for _, kind := range []string{"save", "restore"} {
		for _, result := range []string{"ok", "failed"} {
			m.WithLabelValues(kind, result)
		}
	}
	return m
}

func (b *backups) count(kind string, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	b.metrics.WithLabelValues(kind, result).Inc()
}

// Address is what a backup of another mesh has to be sealed for, so that this one can open it.
func (b *backups) Address() []byte { return b.kek.Address() }

// Save begins a backup.
func (b *backups) Save(ctx context.Context, stale bool) (*api.Backup, error) {
	if b.store != nil {
		return b.saveHere(ctx, stale)
	}
	var errs []error
	for _, voter := range b.dir.Voters() {
		bk, err := b.saveThere(ctx, voter, stale)
		if err == nil {
			return bk, nil
		}
		errs = append(errs, fmt.Errorf("voter %s: %w", voter, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: time.Second,
		Message: "no voter could begin a backup; retry: " + errText(errors.Join(errs...)),
	}
}

// saveHere makes a backup of the own state, in a goroutine that ends with the stream.
func (b *backups) saveHere(ctx context.Context, stale bool) (_ *api.Backup, err error) {
	select {
	case b.slots <- struct{}{}:
	default:
		return nil, &kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: 10 * time.Second,
			Message: fmt.Sprintf("this voter is making %d backups already, its limit; ask another one, or later", maxBackups),
		}
	}
	s := &saving{b: b, done: make(chan struct{}), failed: make(chan struct{})}
	s.ends = append(s.ends, func() { <-b.slots })
	defer func() {
		if err != nil {
			s.end()
		}
	}()
	if !stale {
		if err := b.freshen(ctx); err != nil {
			return nil, err
		}
	}
	s.ends = append(s.ends, b.blobs.keeper.Hold()) // before the cut, so that everything it names stays
	if s.cut, err = b.store.State().Cut(); err != nil {
		return nil, err
	}
	s.ends = append(s.ends, s.cut.Close)
	at := s.cut.Applied()
	if at.Cluster.IsZero() {
		return nil, &kv.Error{Code: kv.CodeUnavailable, RetryAfter: time.Second, Message: "the mesh has not begun yet: there is nothing to back up"}
	}
	keys, bytes, err := s.cut.Size()
	if err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.ends = append(s.ends, func() { s.cancel(nil) })
	s.reader, s.writer = io.Pipe()
	go s.run()
	return &api.Backup{Body: s, Epoch: at.Epoch, Revision: at.Revision, Estimate: bytes + keys*keyOverhead, GivenUp: s.failed}, nil
}

// keyOverhead is about what a key takes in a backup beside itself and its value.
const keyOverhead = 80

// freshen waits until the own state holds everything that was acknowledged before the call.
func (b *backups) freshen(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, backupFresh)
	defer cancel()
	var last error
	for {
		leader, changed := b.dir.Leader()
		rev, err := b.leaderRevision(ctx, leader)
		if err == nil {
			err = b.store.State().WaitRevision(ctx, rev)
		}
		if err == nil {
			return nil
		}
		last = err
		select {
		case <-changed:
		case <-time.After(leaderPoll):
		case <-ctx.Done():
			return &kv.Error{
				Code: kv.CodeNoLeader, RetryAfter: time.Second,
				Message: "no leader could say which state is the newest; retry, or take what this voter has, which may lack the latest writes, with stale=true (--allow-stale): " + last.Error(),
			}
		}
	}
}

// leaderRevision is the revision of a state that the leader, confirmed as such after the call, had.
func (b *backups) leaderRevision(ctx context.Context, leader string) (kv.Revision, error) {
	if leader == b.self {
		conf, err := b.store.Confirm(ctx)
		return conf.Revision, err
	}
	if leader == "" {
		return 0, errors.New("none is known")
	}
	reply, err := b.rpc.Call(ctx, leader, peer.Call{Method: wire.MethodProbe, Args: &wire.ProbeArgs{}, Idempotent: true})
	if err != nil {
		b.dir.doubt(leader, err)
		return 0, err
	}
	var res wire.ProbeResult
	if err := peer.Decode(reply.Result, &res); err != nil {
		return 0, err
	}
	if !res.Leader {
		return 0, fmt.Errorf("node %s does not lead", leader)
	}
	return res.Revision, nil
}

// saving is one backup that is being made from the own state. It is the stream that its reader reads.
type saving struct {
	b      *backups
	cut    *state.Cut
	ctx    context.Context
	cancel context.CancelCauseFunc
	reader *io.PipeReader
	writer *io.PipeWriter
	ends   []func()      // what to release at the end, last in first out
	done   chan struct{} // closed when run has ended
	failed chan struct{} // closed when it has failed
}

func (s *saving) end() {
	for i := len(s.ends) - 1; i >= 0; i-- {
		s.ends[i]()
	}
}

func (s *saving) Read(p []byte) (int, error) { return s.reader.Read(p) }

// Close gives the backup up, if it is not whole yet, and waits until nothing of it is left.
func (s *saving) Close() error {
	s.cancel(errors.New("nobody reads the backup any more"))
	err := s.reader.Close()
	<-s.done
	return err
}

// run makes the backup. Whoever reads slowly holds up nothing else: the state is given back when it is wanted.
func (s *saving) run() {
	defer close(s.done)
	defer s.end()
	var watch sync.WaitGroup
	defer watch.Wait()
	written := make(chan struct{})
	defer close(written)
	watch.Go(func() {
		select {
		case <-s.cut.Gone():
			s.cancel(&kv.Error{Code: kv.CodeUnavailable, RetryAfter: time.Second, Message: "the voter's state was replaced or closed; ask for the backup again"})
		case <-s.b.leaving.Done():
			s.cancel(&kv.Error{Code: kv.CodeUnavailable, RetryAfter: time.Second, Message: "the voter is shutting down; ask another one for the backup"})
		case <-s.ctx.Done():
		case <-written:
			return
		}
		_ = s.writer.CloseWithError(context.Cause(s.ctx)) // always nil
	})
	began := time.Now()
	totals, err := s.write()
	if cause := context.Cause(s.ctx); err != nil && cause != nil {
		err = cause
	}
	_ = s.writer.CloseWithError(err) // always nil; without an error it is the end
	s.b.count("save", err)
	if err != nil {
		close(s.failed)
		s.b.log.Warn("a backup was not finished", "revision", s.cut.Applied().Revision, "error", err)
		return
	}
	s.b.log.Info("a backup was made", "revision", s.cut.Applied().Revision, "namespaces", totals.Namespaces,
		"keys", totals.Keys, "bytes", totals.Bytes, "large_values", totals.Blobs, "took", time.Since(began).Round(time.Millisecond))
}

// write goes through the cut from front to back.
func (s *saving) write() (backup.Totals, error) {
	at, now := s.cut.Applied(), s.b.clock.Settled().UnixMilli()
	now = max(now, at.MeshTime)
	w, err := backup.NewWriter(&pacedWriter{ctx: s.ctx, w: s.writer}, backup.Header{
		Cluster: at.Cluster, Epoch: at.Epoch, Revision: at.Revision, MeshTime: now,
		Created: s.b.wall().UnixMilli(), Version: s.b.version,
	}, s.b.kek)
	if err != nil {
		return backup.Totals{}, err
	}
	for _, ns := range s.cut.Namespaces() {
		if err := w.Namespace(ns); err != nil {
			return w.Totals(), err
		}
		key, err := s.b.kek.Unwrap(ns.ID, ns.WrappedKey)
		if err != nil {
			return w.Totals(), err
		}
		err = s.cut.EachKey(ns.ID, func(name string, it *kv.Item) error {
			if it.Expiry != 0 && it.Expiry*1000 <= now { // it is gone already, for everyone
				return nil
			}
			if err := w.Key(name, it); err != nil || it.Blob.IsZero() {
				return err
			}
			return s.b.copyLarge(s.ctx, w, key, ns.ID, name, it)
		})
		if err != nil {
			return w.Totals(), err
		}
	}
	return w.Totals(), w.Close()
}

// pacedWriter makes a backup give way to Raft.
type pacedWriter struct {
	ctx  context.Context
	w    io.Writer
	pace pacer
}

func (p *pacedWriter) Write(b []byte) (int, error) {
	n, err := p.w.Write(b)
	p.pace.after(p.ctx, n)
	return n, err
}

// copyLarge copies a large value, sealed, into a backup. Each segment is opened on the way, to be sure that it is good: where
// the own file is missing, short or damaged, the next voter's copy goes on.
func (b *backups) copyLarge(ctx context.Context, w *backup.Writer, key *seal.DataKey, ns kv.NamespaceID, name string, it *kv.Item) error {
	ref := blob.Ref{Namespace: ns, ID: it.Blob}
	v := &verifying{out: w.Data}
	var errs []error
	for _, voter := range append([]string{""}, b.dir.Voters()...) { // "" = the own disk
		err := b.copyFrom(ctx, v, voter, key, ref, name, it)
		if err == nil || v.failed != nil || ctx.Err() != nil {
			return err
		}
		if voter == "" {
			b.blobs.noteDamage(ns, it.Blob, err)
			b.log.Warn("a large value cannot be read from this voter's disk; the others are asked", "blob", ref, "error", err)
		}
		errs = append(errs, fmt.Errorf("voter %s: %w", cmp.Or(voter, b.self), err))
	}
	return noVoterGives(errs)
}

// copyFrom copies what is still to come of a large value from one voter's copy.
func (b *backups) copyFrom(ctx context.Context, v *verifying, voter string, key *seal.DataKey, ref blob.Ref, name string, it *kv.Item) (err error) {
	size := seal.SealedSize(it.Size)
	source := &blobSource{t: b.blobs, ctx: ctx, ref: ref, voter: voter, want: size, until: size}
	defer source.close()
	v.begin()
	r, err := key.OpenReader(ref.Namespace, name, it.WriteID, size, it.Size, 0, func(offset int64) (io.ReadCloser, error) {
		src, err := source.open(offset)
		v.src = src
		return v, err
	})
	if err != nil {
		return err
	}
	_, err = io.Copy(v.good(), r)
	return errors.Join(err, r.Close())
}

// verifying hands on the sealed bytes that were read from a source once the segment that they belong to has been opened. Of
// the next source it passes over what it has handed on before.
type verifying struct {
	src    io.ReadCloser
	out    func([]byte) error
	given  int64  // bytes handed on, of all sources
	read   int64  // bytes of this source that were opened
	buf    []byte // read of this source and not opened yet
	failed error  // of out
}

func (v *verifying) begin() { v.read, v.buf = 0, v.buf[:0] }

func (v *verifying) Read(p []byte) (int, error) {
	n, err := v.src.Read(p)
	v.buf = append(v.buf, p[:n]...)
	return n, err
}

func (v *verifying) Close() error { return v.src.Close() }

// good returns the writer to which the opened segments go.
func (v *verifying) good() io.Writer { return verifiedWriter{v} }

type verifiedWriter struct{ v *verifying }

func (w verifiedWriter) Write(plain []byte) (int, error) {
	v := w.v
	fresh := v.buf[min(max(v.given-v.read, 0), int64(len(v.buf))):]
	v.read += int64(len(v.buf))
	v.buf = v.buf[:0]
	if v.failed = v.out(fresh); v.failed != nil {
		return 0, v.failed
	}
	v.given = max(v.given, v.read)
	return len(plain), nil
}
