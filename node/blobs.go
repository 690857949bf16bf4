package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
)

// blobTransfer moves sealed large values between nodes: streamed once to all voters before their pointer commits, and
// back from whichever voter has them. The bytes are sealed; nobody on the way opens them.
type blobTransfer struct {
	self   string
	dir    *directory
	dialer *peer.Dialer
	local  *blob.Store // the own disk, nil on edges
	log    *slog.Logger

	ctx   context.Context // of the node: a lane outlives the request whose quorum it did not belong to
	lanes sync.WaitGroup
}

const (
	blobChunk = 256 << 10
	// blobQueue chunks may wait for one voter: the memory of one upload is blobChunk × blobQueue × voters.
	blobQueue = 4
	// blobStall is how long one voter may hold up an upload before it goes on without it.
	blobStall = 5 * time.Second
	// blobIdle ends a transfer on which nothing moves.
	blobIdle = 20 * time.Second
)

// blobSink takes one blob on one voter.
type blobSink interface {
	write(chunk []byte) error
	// commit returns once the blob is on that voter's disk, fsynced.
	commit(total int64) error
	abort()
}

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
		lanes[i] = &blobLane{chunks: make(chan []byte, blobQueue), dead: make(chan struct{})}
		t.lanes.Go(func() {
			lanes[i].run(func() (blobSink, error) { return t.sink(t.ctx, v, ns, id) }, acks)
		})
	}
	total, err := feedLanes(ctx, sealed, lanes, quorum)
	for _, l := range lanes {
		l.finish(total, err)
	}
	if err != nil {
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
	if e := asKVError(err); e != nil && e.Code == kv.CodeDiskFull {
		return e
	}
	return &kv.Error{
		Code: kv.CodeNoQuorum, RetryAfter: time.Second,
		Message: fmt.Sprintf("%d of %d voters stored the value, %d are needed; retry (%v)", good, of, quorum, err),
	}
}

// feedLanes reads the blob once and hands every chunk to all living lanes.
func feedLanes(ctx context.Context, r io.Reader, lanes []*blobLane, quorum int) (int64, error) {
	var total int64
	stall := time.NewTimer(blobStall)
	defer stall.Stop()
	for {
		chunk := make([]byte, blobChunk) // shared by the lanes, which only read it
		n, err := io.ReadFull(r, chunk)
		if n > 0 {
			total += int64(n)
			living := 0
			stall.Reset(blobStall)
			for _, l := range lanes {
				select {
				case <-l.dead:
					continue
				default:
				}
				select {
				case l.chunks <- chunk[:n]:
					living++
				case <-l.dead:
				case <-stall.C:
					l.cut()
					stall.Reset(blobStall)
				case <-ctx.Done():
					return total, context.Cause(ctx)
				}
			}
			if living < quorum {
				return total, &kv.Error{
					Code: kv.CodeNoQuorum, RetryAfter: time.Second,
					Message: fmt.Sprintf("only %d of %d voters take the value, %d are needed; retry", living, len(lanes), quorum),
				}
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// blobLane carries one blob to one voter.
type blobLane struct {
	chunks chan []byte // closed by finish
	total  int64       // set before chunks is closed; < 0: abort
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

// sink opens the lane's far end.
func (t *blobTransfer) sink(ctx context.Context, voter string, ns kv.NamespaceID, id kv.BlobID) (blobSink, error) {
	if voter == t.self && t.local != nil {
		w, err := t.local.Create(ns, id)
		if err != nil {
			return nil, blobDiskError(err)
		}
		return &localSink{w: w}, nil
	}
	conn, err := t.dialer.Dial(ctx, voter, peer.ALPNBlob)
	if err != nil {
		return nil, err
	}
	s := &remoteSink{conn: conn}
	if err := s.send(wire.BlobPut, &wire.BlobRef{Namespace: ns, Blob: id}); err != nil {
		s.abort()
		return nil, err
	}
	return s, nil
}

type localSink struct {
	w *blob.Writer
	n int64
}

func (s *localSink) write(chunk []byte) error {
	n, err := s.w.Write(chunk)
	s.n += int64(n)
	return blobDiskError(err)
}

func (s *localSink) commit(total int64) error {
	if s.n != total {
		s.abort()
		return fmt.Errorf("%d of %d bytes were written", s.n, total)
	}
	return blobDiskError(s.w.Commit())
}

func (s *localSink) abort() { _ = s.w.Abort() }

type remoteSink struct{ conn *peer.Conn }

func (s *remoteSink) send(kind byte, msg any) error {
	b, err := peer.Encode(msg)
	if err != nil {
		return err
	}
	_ = s.conn.SetDeadline(time.Now().Add(blobIdle))
	return peer.WriteFrame(s.conn, kind, b)
}

func (s *remoteSink) write(chunk []byte) error {
	_ = s.conn.SetDeadline(time.Now().Add(blobIdle))
	return peer.WriteFrame(s.conn, wire.BlobData, chunk)
}

func (s *remoteSink) commit(total int64) error {
	defer s.abort()
	if err := s.send(wire.BlobEnd, &wire.BlobTotal{Size: total}); err != nil {
		return err
	}
	kind, payload, err := peer.ReadFrame(s.conn, nil)
	if err != nil {
		return err
	}
	return blobReply(kind, payload, wire.BlobDone)
}

func (s *remoteSink) abort() { _ = s.conn.Close() }

func blobReply(kind byte, payload []byte, want byte) error {
	switch kind {
	case want:
		return nil
	case wire.BlobError:
		var f wire.BlobFailure
		if err := peer.Decode(payload, &f); err != nil {
			return err
		}
		if f.Code == string(kv.CodeNotFound) {
			return fmt.Errorf("%w: %s", fs.ErrNotExist, f.Message)
		}
		return kv.Errorf(kv.Code(f.Code), "%s", f.Message)
	}
	return fmt.Errorf("blob protocol: unexpected frame %d", kind)
}

// open opens a sealed blob at an offset, from the nearest voter that has it, and tells its whole size.
func (t *blobTransfer) open(ctx context.Context, ns kv.NamespaceID, id kv.BlobID, offset int64) (io.ReadCloser, int64, error) {
	var errs []error
	if t.local != nil {
		f, err := t.local.Open(ns, id)
		if err == nil {
			if _, err = f.Seek(offset, io.SeekStart); err == nil {
				return f, f.Size(), nil
			}
			_ = f.Close()
		}
		errs = append(errs, err)
	}
	for _, v := range t.dir.Voters() {
		r, size, err := t.fetch(ctx, v, ns, id, offset)
		if err == nil {
			return r, size, nil
		}
		errs = append(errs, fmt.Errorf("voter %s: %w", v, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, 0, &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: time.Second,
		Message: "no voter could give the value just now; retry: " + errors.Join(errs...).Error(),
	}
}

func (t *blobTransfer) fetch(ctx context.Context, voter string, ns kv.NamespaceID, id kv.BlobID, offset int64) (io.ReadCloser, int64, error) {
	conn, err := t.dialer.Dial(ctx, voter, peer.ALPNBlob)
	if err != nil {
		return nil, 0, err
	}
	s := &remoteSink{conn: conn}
	if err := s.send(wire.BlobGet, &wire.BlobRef{Namespace: ns, Blob: id, Offset: offset}); err != nil {
		s.abort()
		return nil, 0, err
	}
	kind, payload, err := peer.ReadFrame(conn, nil)
	if err == nil {
		err = blobReply(kind, payload, wire.BlobHead)
	}
	var head wire.BlobTotal
	if err == nil {
		err = peer.Decode(payload, &head)
	}
	if err == nil && (head.Size < offset || head.Size < 0) {
		err = fmt.Errorf("the voter's blob has %d bytes, offset %d was asked for", head.Size, offset)
	}
	if err != nil {
		s.abort()
		return nil, 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return &remoteBlob{conn: conn, left: head.Size - offset, stop: stop}, head.Size, nil
}

// remoteBlob reads the raw bytes that follow a BlobHead.
type remoteBlob struct {
	conn *peer.Conn
	left int64
	stop func() bool
}

func (r *remoteBlob) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	_ = r.conn.SetReadDeadline(time.Now().Add(blobIdle))
	n, err := r.conn.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close hangs up. What was read is complete by its count, and verified when it is opened, so that the farewell may fail.
func (r *remoteBlob) Close() error {
	r.stop()
	_ = r.conn.Close()
	return nil
}

// serve answers one exchange of another node.
func (t *blobTransfer) serve(_ context.Context, c *peer.Conn) {
	_ = c.SetDeadline(time.Now().Add(blobIdle))
	kind, payload, err := peer.ReadFrame(c, nil)
	var ref wire.BlobRef
	if err == nil {
		err = peer.Decode(payload, &ref)
	}
	if err != nil {
		t.log.Debug("blob exchange", "peer", c.Peer().NodeID, "error", err)
		return
	}
	s := &remoteSink{conn: c}
	switch kind {
	case wire.BlobPut:
		err = t.receive(ref, c)
		if err == nil {
			err = peer.WriteFrame(c, wire.BlobDone, nil)
			break
		}
		if errors.Is(err, io.EOF) { // the upload was given up at its other end, most often with the client's request
			break
		}
		t.log.Warn("a large value could not be stored", "peer", c.Peer().NodeID, "error", err)
		err = s.send(wire.BlobError, &wire.BlobFailure{Code: string(kv.CodeOf(err)), Message: err.Error()})
	case wire.BlobGet:
		err = t.give(ref, c, s)
	default:
		err = s.send(wire.BlobError, &wire.BlobFailure{Code: string(kv.CodeInternal), Message: fmt.Sprintf("frame type %d", kind)})
	}
	if err != nil {
		t.log.Debug("blob exchange", "peer", c.Peer().NodeID, "error", err)
	}
}

func (t *blobTransfer) receive(ref wire.BlobRef, c *peer.Conn) error {
	w, err := t.local.Create(ref.Namespace, ref.Blob)
	if err != nil {
		return blobDiskError(err)
	}
	sink := &localSink{w: w}
	var buf []byte
	for {
		_ = c.SetDeadline(time.Now().Add(blobIdle))
		kind, payload, err := peer.ReadFrame(c, buf)
		if err != nil {
			sink.abort()
			return err
		}
		buf = payload
		switch kind {
		case wire.BlobData:
			if sink.n+int64(len(payload)) > maxSealedBlob {
				sink.abort()
				return kv.Errorf(kv.CodeValueTooLarge, "a sealed blob has at most %d bytes", maxSealedBlob)
			}
			if err := sink.write(payload); err != nil {
				sink.abort()
				return err
			}
		case wire.BlobEnd:
			var end wire.BlobTotal
			if err := peer.Decode(payload, &end); err != nil {
				sink.abort()
				return err
			}
			return sink.commit(end.Size)
		default:
			sink.abort()
			return fmt.Errorf("blob protocol: unexpected frame %d", kind)
		}
	}
}

func (t *blobTransfer) give(ref wire.BlobRef, c *peer.Conn, s *remoteSink) error {
	f, err := t.local.Open(ref.Namespace, ref.Blob)
	if err != nil {
		code := kv.CodeInternal
		if errors.Is(err, fs.ErrNotExist) {
			code = kv.CodeNotFound
		}
		return s.send(wire.BlobError, &wire.BlobFailure{Code: string(code), Message: err.Error()})
	}
	defer func() { _ = f.Close() }()
	if ref.Offset < 0 || ref.Offset > f.Size() {
		return s.send(wire.BlobError, &wire.BlobFailure{Code: string(kv.CodeInternal), Message: "offset out of range"})
	}
	if _, err := f.Seek(ref.Offset, io.SeekStart); err != nil {
		return s.send(wire.BlobError, &wire.BlobFailure{Code: string(kv.CodeInternal), Message: err.Error()})
	}
	if err := s.send(wire.BlobHead, &wire.BlobTotal{Size: f.Size()}); err != nil {
		return err
	}
	buf := make([]byte, blobChunk)
	for left := f.Size() - ref.Offset; left > 0; {
		n, err := f.Read(buf[:min(int64(len(buf)), left)])
		if err != nil {
			return err
		}
		_ = c.SetDeadline(time.Now().Add(blobIdle))
		if _, err := c.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}
