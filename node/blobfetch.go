package node

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/blobkeep"
)

// blobPeers gives the keeper what lies on the disks of the other voters and learners.
type blobPeers struct{ t *blobTransfer }

var _ blobkeep.Peers = blobPeers{}

func (p blobPeers) Voters() []string { return p.t.dir.Voters() }

func (p blobPeers) Open(ctx context.Context, voter string, ref blob.Ref) (blobkeep.Transfer, error) {
	if err := p.t.writable(); err != nil {
		return nil, err
	}
	conn, err := p.t.dial(ctx, voter)
	if err != nil {
		return nil, err
	}
	x := &blobCopy{conn: conn, ref: ref}
	if err = conn.send(wire.BlobStat, &wire.BlobRef{Namespace: ref.Namespace, Blob: ref.ID, Own: true}); err == nil {
		err = conn.receive(wire.BlobHead, &x.head)
	}
	if err == nil && (x.head.Size < 0 || x.head.Size > maxSealedBlob) {
		err = fmt.Errorf("a blob of %d bytes", x.head.Size)
	}
	if err != nil {
		conn.hangUp()
		return nil, err
	}
	return x, nil
}

// blobCopy is one blob on its way from another voter's disk to the own one. Its context is that of Open.
type blobCopy struct {
	conn blobConn
	ref  blob.Ref
	head wire.BlobHeader
}

func (x *blobCopy) Head() (int64, []byte) { return x.head.Size, x.head.Sums }

func (x *blobCopy) From(_ context.Context, offset int64) (io.Reader, error) {
	if offset == x.head.Size {
		return bytes.NewReader(nil), nil
	}
	head, err := x.conn.get(&wire.BlobRef{Namespace: x.ref.Namespace, Blob: x.ref.ID, Offset: offset, Own: true})
	if err == nil && head.Size != x.head.Size {
		err = fmt.Errorf("the blob has %d bytes now, it had %d", head.Size, x.head.Size)
	}
	return &remoteBlob{x.conn, x.head.Size - offset}, err
}

func (x *blobCopy) Close() error {
	x.conn.hangUp()
	return nil
}
