package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"kvmesh/node/api"
	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// saveThere has another voter make a backup, and passes it on as it comes.
func (b *backups) saveThere(ctx context.Context, voter string, stale bool) (*api.Backup, error) {
	conn, err := b.dialer.Dial(ctx, voter, peer.ALPNBackup)
	if err != nil {
		return nil, err
	}
	s := &remoteBackup{conn: conn, stop: context.AfterFunc(ctx, conn.Abort)}
	start, err := s.begin(stale)
	if err != nil {
		if cerr := s.Close(); cerr != nil {
			b.log.Debug("closing a backup's connection", "error", cerr)
		}
		return nil, err
	}
	s.leaving = context.AfterFunc(b.leaving, conn.Abort)
	return &api.Backup{
		Body: s, Epoch: start.Epoch, Revision: start.Revision, Estimate: start.Estimate, GivenUp: b.leaving.Done(),
	}, nil
}

// remoteBackup reads what a voter streams.
type remoteBackup struct {
	conn          *peer.Conn
	stop, leaving func() bool
	buf           []byte // of the frames
	data          []byte // not read yet, a part of buf
	err           error  // sticky
}

func (r *remoteBackup) begin(stale bool) (start wire.BackupStart, err error) {
	b, err := peer.Encode(&wire.BackupArgs{Stale: stale})
	if err != nil {
		return start, err
	}
	_ = r.conn.SetDeadline(time.Now().Add(backupIdle))
	if err := peer.WriteFrame(r.conn, wire.BackupGet, b); err != nil {
		return start, err
	}
	kind, payload, err := r.frame()
	if err != nil {
		return start, err
	}
	if kind != wire.BackupHead {
		return start, fmt.Errorf("backup protocol: frame %d in place of the head", kind)
	}
	return start, peer.Decode(payload, &start)
}

// frame reads the next frame; an error that the voter sent is one.
func (r *remoteBackup) frame() (kind byte, payload []byte, err error) {
	_ = r.conn.SetReadDeadline(time.Now().Add(backupIdle))
	kind, payload, err = peer.ReadFrame(r.conn, r.buf)
	if errors.Is(err, io.EOF) { // never where it may end
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, err
	}
	r.buf = payload[:0]
	if kind != wire.BackupError {
		return kind, payload, nil
	}
	var f wire.BackupFailure
	if err := peer.Decode(payload, &f); err != nil {
		return 0, nil, err
	}
	return 0, nil, &kv.Error{Code: kv.Code(f.Code), Message: f.Message, RetryAfter: time.Duration(f.RetryAfterMs) * time.Millisecond}
}

func (r *remoteBackup) Read(p []byte) (int, error) {
	for len(r.data) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		kind, payload, err := r.frame()
		switch {
		case err != nil:
			r.err = err
		case kind == wire.BackupEnd:
			r.err = io.EOF
		case kind == wire.BackupData:
			r.data = payload
		default:
			r.err = fmt.Errorf("backup protocol: unexpected frame %d", kind)
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// Close hangs up, which is how the voter learns that no more is wanted.
func (r *remoteBackup) Close() error {
	r.stop()
	if r.leaving != nil {
		r.leaving()
	}
	r.conn.Abort()
	return nil
}

// serve answers one exchange of another node.
func (b *backups) serve(ctx context.Context, c *peer.Conn) {
	_ = c.SetDeadline(time.Now().Add(backupIdle))
	kind, payload, err := peer.ReadFrame(c, nil)
	var args wire.BackupArgs
	if err == nil && kind != wire.BackupGet {
		err = fmt.Errorf("backup protocol: unexpected frame %d", kind)
	}
	if err == nil {
		err = peer.Decode(payload, &args)
	}
	if err == nil {
		err = b.give(ctx, c, args)
	}
	if err != nil {
		b.log.Debug("backup exchange", "peer", c.Peer().NodeID, "error", err)
	}
}

// give makes a backup for another node, until that hangs up.
func (b *backups) give(ctx context.Context, c *peer.Conn, args wire.BackupArgs) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_ = c.SetReadDeadline(time.Time{})
	gone := make(chan struct{})
	go func() { // the other side says nothing more: anything read is its end
		defer close(gone)
		defer cancel()
		_, _ = c.Read(make([]byte, 1))
	}()
	defer func() {
		c.Abort()
		<-gone
	}()
	send := func(kind byte, msg any) error {
		b, err := peer.Encode(msg)
		if err != nil {
			return err
		}
		_ = c.SetWriteDeadline(time.Now().Add(backupIdle))
		return peer.WriteFrame(c, kind, b)
	}
	refuse := func(err error) error {
		e := asKVError(err)
		if e == nil {
			e = kv.Errorf(kv.CodeInternal, "the voter met an error while it made the backup; its log says more")
		}
		return errors.Join(err, send(wire.BackupError, &wire.BackupFailure{
			Code: string(e.Code), Message: e.Message, RetryAfterMs: e.RetryAfter.Milliseconds(),
		}))
	}
	bk, err := b.saveHere(ctx, args.Stale)
	if err != nil {
		return refuse(err)
	}
	defer func() { err = errors.Join(err, bk.Body.Close()) }()
	defer context.AfterFunc(b.leaving, c.Abort)() // the other node may be waiting for a slow client
	if err := send(wire.BackupHead, &wire.BackupStart{Epoch: bk.Epoch, Revision: bk.Revision, Estimate: bk.Estimate}); err != nil {
		return err
	}
	buf := make([]byte, backupChunk)
	for {
		n, err := bk.Body.Read(buf)
		if n > 0 {
			_ = c.SetWriteDeadline(time.Now().Add(backupIdle))
			if err := peer.WriteFrame(c, wire.BackupData, buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			_ = c.SetWriteDeadline(time.Now().Add(backupIdle))
			if err := peer.WriteFrame(c, wire.BackupEnd, nil); err != nil {
				return err
			}
			return c.Close() // after a goodbye: the end must arrive
		}
		if err != nil {
			return refuse(err)
		}
	}
}
