package raftstore

import (
	"errors"
	"fmt"
	"io"

	"kvmesh/raftstore/state"
)

// snapshotSink takes a snapshot in. The library calls Close or Cancel once, after the last Write.
type snapshotSink struct {
	store     *snapshotStore
	meta      snapshotMeta
	witnessed bool // set by Persist: the state has made durable what the snapshot claims

	// A received checkpoint is unpacked by a goroutine of the sink's, which ends when the pipe does.
	id       string
	dir      string
	pipe     *io.PipeWriter
	unpacked chan error
}

// ID names an own snapshot, or the staged checkpoint once bytes have come.
func (k *snapshotSink) ID() string {
	if k.pipe != nil {
		return k.id
	}
	return k.meta.ID
}

func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.pipe == nil {
		if err := k.stage(); err != nil {
			return 0, err
		}
	}
	return k.pipe.Write(p)
}

func (k *snapshotSink) stage() error {
	s := k.store
	k.dir = s.newDir(stagingDir)
	if err := s.fs.MkdirAll(k.dir, 0o700); err != nil {
		return err
	}
	k.id = stagedPrefix + s.fs.PathBase(k.dir)
	r, w := io.Pipe()
	k.pipe, k.unpacked = w, make(chan error, 1)
	go func() {
		err := unpack(s.fs, k.dir, r)
		_ = r.CloseWithError(err) // always nil; a Write that is waiting gets err
		k.unpacked <- err
	}()
	return nil
}

// Close records an own snapshot, or verifies a received checkpoint and keeps it for Restore.
func (k *snapshotSink) Close() error {
	if k.pipe == nil {
		if !k.witnessed {
			return errors.New("a snapshot that nobody has witnessed, or an empty one")
		}
		return k.store.record(&k.meta)
	}
	_ = k.pipe.Close() // always nil
	applied, err := state.Applied{}, <-k.unpacked
	if err == nil {
		applied, err = k.store.inspect(k.dir)
	}
	if err == nil && applied.Index < k.meta.Index {
		err = fmt.Errorf("it stands at entry %d, before its snapshot at %d", applied.Index, k.meta.Index)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("the received checkpoint is not usable: %w", err), k.store.fs.RemoveAll(k.dir))
	}
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	k.store.staged[k.id] = &stagedCheckpoint{meta: k.meta, dir: k.dir, applied: applied}
	return nil
}

func (k *snapshotSink) Cancel() error {
	if k.pipe == nil {
		return nil
	}
	_ = k.pipe.CloseWithError(errors.New("canceled")) // always nil
	<-k.unpacked
	return k.store.fs.RemoveAll(k.dir)
}
