package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// restoreChunk is what makes up the next chunk.
type restoreChunk struct {
	records []byte
	spaces  bool      // it holds a namespace: nothing may overtake it
	blobs   int64     // bytes of large values
	since   time.Time // when the first of these was added
	stored  []<-chan error
}

// stageAll reads the backup to its end, and sends what it holds.
func (r *restore) stageAll(body io.Reader) (err error) {
	if r.backup, err = backup.NewReader(body); err != nil {
		return err
	}
	if err := r.backup.Unlock(r.b.kek); err != nil {
		return err
	}
	for {
		rec, err := r.backup.Next()
		if err == io.EOF {
			return r.flush()
		}
		if err == nil {
			err = context.Cause(r.ctx)
		}
		if err == nil {
			err = r.stage(rec)
		}
		if err != nil {
			return err
		}
	}
}

// stage adds one record to the open chunk.
func (r *restore) stage(rec *backup.Record) error {
	if rec.Kind == backup.KindNamespace {
		r.space = rec.Namespace.ID
		wrapped, err := r.backup.Rewrap(r.b.kek, &rec.Namespace)
		if err != nil {
			return err
		}
		return r.add(command.Op{
			Kind: command.KindCreateNamespace, Namespace: r.space, Title: rec.Namespace.Title, WrappedKey: wrapped,
			Revision: rec.Namespace.Created,
		}, nil, 0)
	}
	it := &rec.Item
	op := command.Op{
		Kind: command.KindPut, Namespace: r.space, Key: rec.Key, WriteID: it.WriteID, Expiry: it.Expiry, Size: it.Size,
		Metadata: it.Metadata, Value: it.Value, Revision: it.Revision,
	}
	if rec.Blob == 0 {
		return r.add(op, nil, 0)
	}
	// Metadata is only valid until the next record is read, which the upload does.
	op.Metadata, op.Blob = slices.Clone(it.Metadata), kv.NewBlobID()
	size := rec.Blob
	if len(r.open.stored) > 0 && time.Since(r.open.since) > restoreHold {
		if err := r.flush(); err != nil {
			return err
		}
	}
	stored, err := r.upload(op.Namespace, op.Blob, size)
	if err != nil {
		return err
	}
	return r.add(op, stored, size)
}

// add puts one operation into the open chunk, which goes when it is full.
func (r *restore) add(op command.Op, stored <-chan error, blob int64) error {
	if len(r.open.records)+command.StagedSize(&op) > command.MaxStagedBytes || r.open.blobs > restoreBlobs {
		if err := r.flush(); err != nil {
			return err
		}
	}
	r.open.records = command.AppendStaged(r.open.records, &op)
	r.open.spaces = r.open.spaces || op.Kind == command.KindCreateNamespace
	if stored != nil {
		if len(r.open.stored) == 0 {
			r.open.since = time.Now()
		}
		r.open.stored = append(r.open.stored, stored)
		r.open.blobs += blob
	}
	return nil
}

// flush sends the open chunk. It waits for its turn, and for the answer if the chunk holds a namespace.
func (r *restore) flush() error {
	c := r.open
	r.open = restoreChunk{}
	if len(c.records) == 0 {
		return nil
	}
	r.seq++
	op := command.Op{Kind: command.KindRestoreChunk, Restore: &command.Restore{ID: r.id, Seq: r.seq, Records: c.records}}
	if c.spaces {
		return r.send(op, c.stored)
	}
	r.chunks.Go(func() error {
		err := r.send(op, c.stored)
		if err != nil {
			r.cancel(err)
		}
		return err
	})
	return context.Cause(r.ctx)
}

// send sends a chunk once the large values that it names are on the voters' disks.
func (r *restore) send(op command.Op, stored []<-chan error) error {
	var failed error
	for _, s := range stored {
		failed = errors.Join(failed, <-s)
	}
	if failed != nil {
		return failed
	}
	res, err := r.insist(r.ctx, op, restorePatience)
	if err != nil {
		return err
	}
	switch code := res.Ops[0].Code; code {
	case "":
		return nil
	case kv.CodeNotFound:
		return kv.Errorf(kv.CodeUnavailable, "the mesh has given the restore up, because it did not hear of it; nothing was restored")
	default:
		return kv.Errorf(code, "the store refused chunk %d of the restore", op.Restore.Seq)
	}
}

// upload brings the data of a large value, which the next records of the backup give, to a quorum of the voters. A small
// one goes on in the background.
func (r *restore) upload(ns kv.NamespaceID, id kv.BlobID, size int64) (<-chan error, error) {
	data := &restoreData{backup: r.backup, left: size}
	stored := make(chan error, 1)
	if size > restoreLarge {
		stored <- nil
		return stored, r.b.blobs.put(r.ctx, ns, id, data)
	}
	sealed := make([]byte, size)
	if _, err := io.ReadFull(data, sealed); err != nil {
		return nil, err
	}
	r.uploads.Go(func() error {
		err := r.b.blobs.put(r.ctx, ns, id, bytes.NewReader(sealed))
		stored <- err
		return err
	})
	return stored, nil
}

// restoreData reads the sealed bytes of one large value from the records that hold them.
type restoreData struct {
	backup *backup.Reader
	left   int64
	data   []byte // of the present record
}

func (d *restoreData) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	if len(d.data) == 0 {
		rec, err := d.backup.Next()
		if err != nil {
			return 0, err
		}
		d.data = rec.Data
	}
	n := copy(p, d.data)
	d.data = d.data[n:]
	d.left -= int64(n)
	return n, nil
}
