package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
)

// serve answers the questions of one connection, until the other side hangs up or is silent for blobIdle.
func (t *blobTransfer) serve(ctx context.Context, c *peer.Conn) {
	conn := blobConn{Conn: c}
	select {
	case t.serves <- struct{}{}:
		defer func() { <-t.serves }()
	default:
		err := conn.failure(&kv.Error{
			Code: kv.CodeOverloaded, RetryAfter: time.Second,
			Message: fmt.Sprintf("the voter moves %d large values already; retry", maxBlobServes),
		})
		t.ended(c, err)
		return
	}
	var buf []byte
	for {
		conn.moving()
		kind, payload, err := peer.ReadFrame(c, buf)
		if err != nil { // most often the other side is done
			return
		}
		buf = payload[:0]
		var ref wire.BlobRef
		if err = peer.Decode(payload, &ref); err == nil {
			err = t.answer(ctx, conn, kind, ref)
		}
		if err != nil {
			t.ended(c, err)
			return
		}
	}
}

func (t *blobTransfer) ended(c *peer.Conn, err error) {
	if err != nil && !errors.Is(err, io.EOF) { // an upload that is given up ends like that
		t.log.Debug("blob exchange", "peer", c.Peer().NodeID, "error", err)
	}
}

// answer answers one question. After an error the connection is of no more use.
func (t *blobTransfer) answer(ctx context.Context, conn blobConn, kind byte, ref wire.BlobRef) error {
	switch kind {
	case wire.BlobPut:
		if err := t.receive(ref, conn); err != nil {
			if errors.Is(err, io.EOF) { // the upload was given up at its other end, most often with the client's request
				return err
			}
			level := slog.LevelWarn
			switch {
			case kv.CodeOf(err) == kv.CodeDiskFull: // the store has said so once, and every upload would say it again
				level = slog.LevelDebug
			case errors.Is(err, blob.ErrExists): // the write is committed, and this node has fetched it before the upload came
				level = slog.LevelDebug
			}
			t.log.Log(ctx, level, "a large value could not be stored", "peer", conn.Peer().NodeID, "error", err)
			return errors.Join(err, conn.refuse(err))
		}
		conn.moving()
		return peer.WriteFrame(conn, wire.BlobDone, nil)
	case wire.BlobGet:
		return t.give(ctx, ref, conn)
	case wire.BlobStat:
		f, err := t.local.Open(ref.Namespace, ref.Blob)
		if err != nil {
			t.noteDamage(ref.Namespace, ref.Blob, err)
			return conn.failure(err)
		}
		head := &wire.BlobHeader{Size: f.Size(), Sums: f.Sums()}
		if err := f.Close(); err != nil {
			return err
		}
		return conn.send(wire.BlobHead, head)
	default:
		return conn.failure(fmt.Errorf("frame type %d", kind))
	}
}

// blobRefusal is how long what follows a refusal is read, so that the refusal is read too.
const blobRefusal = 5 * time.Second

// refuse tells why a blob is not stored, and reads what of it is on its way: a connection that is closed with bytes unread
// is reset, and the other side would learn no more than that.
func (c blobConn) refuse(why error) error {
	if err := c.failure(why); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(blobRefusal)); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 2*maxSealedBlob)) // until the other side hangs up
	return nil
}

// receive stores the blob that follows.
func (t *blobTransfer) receive(ref wire.BlobRef, c blobConn) error {
	w, err := t.create(ref.Namespace, ref.Blob)
	if err != nil {
		return err
	}
	defer func() { _ = w.Abort() }() // after Commit it does nothing
	var buf []byte
	for {
		c.moving()
		kind, payload, err := peer.ReadFrame(c, buf)
		if err != nil {
			return err
		}
		buf = payload[:0]
		switch kind {
		case wire.BlobData:
			if w.Size()+int64(len(payload)) > maxSealedBlob {
				return kv.Errorf(kv.CodeValueTooLarge, "a sealed blob has at most %d bytes", maxSealedBlob)
			}
			if err := t.write(w, payload); err != nil {
				return err
			}
		case wire.BlobEnd:
			var end wire.BlobTotal
			if err := peer.Decode(payload, &end); err != nil {
				return err
			}
			if end.Size != w.Size() {
				return fmt.Errorf("%d of %d bytes came", w.Size(), end.Size)
			}
			return blobDiskError(w.Commit())
		default:
			return fmt.Errorf("blob protocol: unexpected frame %d", kind)
		}
	}
}

// create begins a blob on this disk, if that has room for values: what room is left when it has none is for the log.
func (t *blobTransfer) create(ns kv.NamespaceID, id kv.BlobID) (*blob.Writer, error) {
	if err := t.writable(); err != nil {
		return nil, err
	}
	w, err := t.local.Create(ns, id)
	return w, blobDiskError(err)
}

// write goes on with it for as long as there is room.
func (t *blobTransfer) write(w *blob.Writer, p []byte) error {
	if err := t.writable(); err != nil {
		return err
	}
	_, err := w.Write(p)
	return blobDiskError(err)
}

// give sends a blob, or a part of it: from the own disk, and unless the other side wants no more than that, from other
// voters what the disk lacks or has damaged.
func (t *blobTransfer) give(ctx context.Context, ref wire.BlobRef, conn blobConn) error {
	r, size, err := t.openSealed(ctx, blob.Ref{Namespace: ref.Namespace, ID: ref.Blob}, ref.Offset, ref.Own)
	if err != nil {
		return conn.failure(err)
	}
	defer func() { _ = r.Close() }()
	if err := conn.send(wire.BlobHead, &wire.BlobHeader{Size: size}); err != nil {
		return err
	}
	left := size - ref.Offset
	if ref.Length > 0 {
		left = min(left, ref.Length)
	}
	chunk := t.pages.Get().(*[]byte)
	defer t.pages.Put(chunk)
	var pace pacer
	for left > 0 {
		n, err := r.Read((*chunk)[:min(int64(len(*chunk)), left)])
		if n > 0 {
			conn.moving()
			if _, err := conn.Write((*chunk)[:n]); err != nil {
				return err
			}
			left -= int64(n)
			pace.after(ctx, n)
		}
		if err != nil && left > 0 {
			return fmt.Errorf("%d bytes are left: %w", left, err)
		}
	}
	return nil
}

// noteDamage has the keeper look at a blob of the own disk that a reader could not read.
func (t *blobTransfer) noteDamage(ns kv.NamespaceID, id kv.BlobID, err error) {
	if t.keeper != nil && (errors.Is(err, blob.ErrDamaged) || errors.Is(err, fs.ErrNotExist)) {
		t.keeper.Report(ns, id, false)
	}
}
