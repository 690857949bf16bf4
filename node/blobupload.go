package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
)

// put streams a sealed blob to every voter and returns once a quorum of them has it fsynced; the others are given the
// rest of it in the background. Anything less than a quorum is an error, and nothing names the blob then.
func (t *blobTransfer) put(ctx context.Context, ns kv.NamespaceID, id kv.BlobID, sealed io.Reader) error {
	voters := t.dir.Configured()
	if len(voters) == 0 {
		return kv.Errorf(kv.CodeNoLeader, "no voter is known that could store the value; retry when the mesh has a leader")
	}
	quorum := len(voters)/2 + 1
	acks := make(chan error, len(voters))
	lanes := make([]*blobLane, len(voters))
	for i, v := range voters {
		lanes[i] = &blobLane{chunks: make(chan *blobBuffer, blobQueue), dead: make(chan struct{})}
		t.lanes.Go(func() {
			lanes[i].run(func() (blobSink, error) { return t.sink(t.ctx, v, ns, id) }, acks)
		})
	}
	total, err := t.feedLanes(ctx, sealed, lanes, quorum)
	for _, l := range lanes {
		l.finish(total, err)
	}
	if err != nil && !errors.Is(err, errTooFewLanes) {
		return err
	}
	var failures []error
	good := 0
	for range lanes {
		select {
		case e := <-acks:
			if e != nil {
				failures = append(failures, e)
			} else {
				good++
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if good >= quorum {
			return nil // what is left goes on by itself: acks has room for it
		}
		if len(lanes)-len(failures) < quorum {
			break
		}
	}
	return blobQuorumError(good, quorum, len(voters), failures)
}

func blobQuorumError(good, quorum, of int, failures []error) error {
	err := errors.Join(failures...)
	if e := asKVError(err); e != nil && (e.Code == kv.CodeDiskFull || e.Code == kv.CodeOverloaded) {
		return e
	}
	return &kv.Error{
		Code: kv.CodeNoQuorum, RetryAfter: time.Second,
		Message: fmt.Sprintf("%d of %d voters stored the value, %d are needed; retry (%v)", good, of, quorum, err),
	}
}

// errTooFewLanes says that too few voters take a value; why, their lanes know.
var errTooFewLanes = errors.New("too few voters take the value")

// feedLanes reads the blob once and hands every chunk to all living lanes.
func (t *blobTransfer) feedLanes(ctx context.Context, r io.Reader, lanes []*blobLane, quorum int) (int64, error) {
	var total int64
	var pace pacer
	for {
		chunk, err := t.chunks.get(ctx)
		if err != nil {
			return total, err
		}
		n, err := io.ReadFull(r, chunk.room())
		if n > 0 {
			total += int64(n)
			chunk.fill(n)
			living, ferr := handOut(ctx, chunk, lanes)
			if ferr == nil && living < quorum {
				ferr = errTooFewLanes
			}
			if ferr != nil {
				chunk.release()
				return total, ferr
			}
		}
		chunk.release()
		pace.after(ctx, n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// handOut gives one chunk to the lanes, and cuts those that have not taken it for blobStall.
func handOut(ctx context.Context, chunk *blobBuffer, lanes []*blobLane) (living int, err error) {
	stall := time.NewTimer(blobStall)
	defer stall.Stop()
	for _, l := range lanes {
		select {
		case <-l.dead:
			continue
		default:
		}
		chunk.refs.Add(1)
		select {
		case l.chunks <- chunk:
			living++
			continue
		case <-l.dead:
		case <-stall.C:
			l.cut()
			stall.Reset(blobStall)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		chunk.release()
		if err != nil {
			return living, err
		}
	}
	return living, nil
}

// chunkPool bounds the memory of all uploads of a node.
type chunkPool struct {
	tokens chan struct{}
	free   sync.Pool // of *blobBuffer
}

func newChunkPool(n int) *chunkPool {
	p := &chunkPool{tokens: make(chan struct{}, n)}
	p.free.New = func() any { return &blobBuffer{pool: p, mem: make([]byte, peer.FrameHead+blobChunk)} }
	return p
}

// get waits for a buffer. An upload that waits holds none but those that its lanes are sending, which come free by
// themselves, so uploads never wait for each other in a circle.
func (p *chunkPool) get(ctx context.Context) (*blobBuffer, error) {
	select {
	case p.tokens <- struct{}{}:
	default:
		stall := time.NewTimer(blobStall)
		defer stall.Stop()
		select {
		case p.tokens <- struct{}{}:
		case <-stall.C:
			return nil, &kv.Error{
				Code: kv.CodeOverloaded, RetryAfter: blobStall,
				Message: "this node takes as many large values at once as it has memory for; retry, or write to another node",
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	b := p.free.Get().(*blobBuffer)
	b.refs.Store(1)
	return b, nil
}

// blobBuffer is one chunk of an upload, shared by the lanes, which only read it, with the head of its frame before it.
type blobBuffer struct {
	pool *chunkPool
	mem  []byte
	n    int
	refs atomic.Int32
}

func (b *blobBuffer) room() []byte { return b.mem[peer.FrameHead:] }

// fill says that n bytes have been read into room.
func (b *blobBuffer) fill(n int) {
	b.n = n
	peer.PutFrameHead(b.mem, wire.BlobData, n)
}

func (b *blobBuffer) payload() []byte { return b.mem[peer.FrameHead:][:b.n] }
func (b *blobBuffer) frame() []byte   { return b.mem[:peer.FrameHead+b.n] }

func (b *blobBuffer) release() {
	if b.refs.Add(-1) == 0 {
		b.pool.free.Put(b)
		<-b.pool.tokens
	}
}

// blobLane carries one blob to one voter.
type blobLane struct {
	chunks chan *blobBuffer // closed by finish
	total  int64            // set before chunks is closed; < 0: abort
	once   sync.Once
	dead   chan struct{} // closed when the lane failed, or was cut
}

func (l *blobLane) cut() { l.once.Do(func() { close(l.dead) }) }

func (l *blobLane) finish(total int64, err error) {
	l.total = total
	if err != nil {
		l.total = -1
	}
	close(l.chunks)
}

func (l *blobLane) run(open func() (blobSink, error), acks chan<- error) {
	sink, err := open()
	if err != nil {
		l.cut()
	}
	for chunk := range l.chunks {
		select {
		case <-l.dead:
			if err == nil {
				err = errors.New("the voter was too slow")
			}
		default:
		}
		if err == nil {
			if err = sink.write(chunk); err != nil {
				l.cut()
			}
		}
		chunk.release()
	}
	if sink == nil {
		acks <- err
		return
	}
	switch {
	case err == nil && l.total >= 0:
		err = sink.commit(l.total)
	default:
		sink.abort()
		if err == nil {
			err = errors.New("the upload was given up")
		}
	}
	acks <- err
}

// blobSink takes one blob on one voter.
type blobSink interface {
	write(chunk *blobBuffer) error
	// commit returns once the blob is on that voter's disk, fsynced.
	commit(total int64) error
	abort()
}

// sink opens the lane's far end.
func (t *blobTransfer) sink(ctx context.Context, voter string, ns kv.NamespaceID, id kv.BlobID) (blobSink, error) {
	if voter == t.self && t.local != nil {
		w, err := t.create(ns, id)
		if err != nil {
			return nil, err
		}
		return &localSink{t, w}, nil
	}
	conn, err := t.dial(ctx, voter)
	if err != nil {
		return nil, err
	}
	if err := conn.send(wire.BlobPut, &wire.BlobRef{Namespace: ns, Blob: id}); err != nil {
		conn.hangUp()
		return nil, err
	}
	return &remoteSink{conn}, nil
}

type localSink struct {
	t *blobTransfer
	w *blob.Writer
}

func (s *localSink) write(chunk *blobBuffer) error { return s.t.write(s.w, chunk.payload()) }

func (s *localSink) commit(total int64) error {
	if s.w.Size() != total {
		s.abort()
		return fmt.Errorf("%d of %d bytes were written", s.w.Size(), total)
	}
	return blobDiskError(s.w.Commit())
}

func (s *localSink) abort() { _ = s.w.Abort() } // the file goes with the next start at the latest

type remoteSink struct{ conn blobConn }

func (s *remoteSink) write(chunk *blobBuffer) error {
	s.conn.moving()
	_, err := s.conn.Write(chunk.frame())
	return err
}

func (s *remoteSink) commit(total int64) error {
	defer s.abort()
	if err := s.conn.send(wire.BlobEnd, &wire.BlobTotal{Size: total}); err != nil {
		return err
	}
	return s.conn.receive(wire.BlobDone, nil)
}

func (s *remoteSink) abort() { s.conn.hangUp() }
