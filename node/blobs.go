package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/blobkeep"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/state"
)

// blobTransfer moves sealed large values between nodes: streamed once to all voters before their pointer commits
// (blobupload.go), back from whichever voter has them (blobread.go), and from voter to voter (blobfetch.go). The bytes are
// sealed; nobody on the way opens them.
type blobTransfer struct {
	self   string
	dir    voters
	dialer *peer.Dialer
	log    *slog.Logger
	chunks *chunkPool
	serves chan struct{} // a token for each connection that is being served
	pages  sync.Pool     // of *[]byte, what is sent at once

	// Of voters and learners, nil on edges.
	local  *blob.Store
	keeper *blobkeep.Keeper
	state  *state.State
	// writable is nil while this disk has room for values; else the error to refuse them with.
	writable func() error

	ctx   context.Context // of the node: a lane outlives the request whose quorum it did not belong to
	lanes sync.WaitGroup
}

// voters says who has large values. Neither method blocks.
type voters interface {
	// Configured are all voters of the mesh, this node among them if it is one.
	Configured() []string
	// Voters lists the other voters and learners that can be asked, the nearest first.
	Voters() []string
}

const (
	blobChunk = 256 << 10
	// blobQueue chunks may wait for one voter.
	blobQueue = 4
	// blobBuffers is the memory of all uploads that this node takes at once. One alone uses up to blobQueue+2 chunks; when
	// there are many they wait for each other.
	blobBuffers = 48 << 20
	// blobStall is how long one voter may hold up an upload before it goes on without it, and how long an upload waits for a
	// buffer.
	blobStall = 5 * time.Second
	// blobIdle ends a transfer on which nothing moves.
	blobIdle = 20 * time.Second
	// maxBlobServes bounds the connections that one voter serves at once, up to about 500 KiB each.
	maxBlobServes = 128
)

func newBlobTransfer(ctx context.Context, self string, dir voters, dialer *peer.Dialer, log *slog.Logger) *blobTransfer {
	t := &blobTransfer{
		self: self, dir: dir, dialer: dialer, log: log, ctx: ctx,
		chunks: newChunkPool(blobBuffers / blobChunk), serves: make(chan struct{}, maxBlobServes),
		writable: func() error { return nil },
	}
	t.pages.New = func() any { b := make([]byte, blob.SegmentBytes); return &b }
	return t
}

// blobConn is one side of a connection for blobs.
type blobConn struct {
	*peer.Conn
	stop func() bool // nil on the called side
}

// dial connects to a voter. The connection is cut when ctx ends.
func (t *blobTransfer) dial(ctx context.Context, voter string) (blobConn, error) {
	conn, err := t.dialer.Dial(ctx, voter, peer.ALPNBlob)
	if err != nil {
		return blobConn{}, err
	}
	return blobConn{conn, context.AfterFunc(ctx, conn.Abort)}, nil
}

// send writes one message.
func (c blobConn) send(kind byte, msg any) error {
	b, err := peer.Encode(msg)
	if err != nil {
		return err
	}
	c.moving()
	return peer.WriteFrame(c.Conn, kind, b)
}

// moving gives the transfer another blobIdle. The deadline of a connection that is gone cannot be set, and what comes next
// fails anyway.
func (c blobConn) moving() { _ = c.SetDeadline(time.Now().Add(blobIdle)) }

// receive reads the answer that is wanted, into msg unless that is nil, or a failure.
func (c blobConn) receive(want byte, msg any) error {
	c.moving()
	kind, payload, err := peer.ReadFrame(c.Conn, nil)
	if err != nil {
		return err
	}
	switch kind {
	case want:
		if msg == nil {
			return nil
		}
		return peer.Decode(payload, msg)
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

// failure tells the other side why not.
func (c blobConn) failure(err error) error {
	code := kv.CodeOf(err)
	if errors.Is(err, fs.ErrNotExist) {
		code = kv.CodeNotFound
	}
	return c.send(wire.BlobError, &wire.BlobFailure{Code: string(code), Message: err.Error()})
}

// hangUp ends the connection. What was read is complete by its count and verified when it is opened, so that the farewell
// may fail.
func (c blobConn) hangUp() {
	if c.stop != nil {
		c.stop()
	}
	_ = c.Close()
}

// blobDiskError names a full disk by its code.
func blobDiskError(err error) error {
	if err != nil && errors.Is(err, syscall.ENOSPC) {
		return &kv.Error{Code: kv.CodeDiskFull, Message: "a voter's disk is full; free some space", RetryAfter: 5 * time.Second}
	}
	return err
}
