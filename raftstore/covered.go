package raftstore

import (
	"context"

	"github.com/hashicorp/raft"
)

// Consumer gives the library what other members ask of this one, without what a snapshot of this one covers.
func (t *transport) Consumer() <-chan raft.RPC { return t.incoming }

// runConsumer passes requests on until ctx ends. Those that it does not pass on any more end with the transport.
func (t *transport) runConsumer(ctx context.Context) {
	requests := t.NetworkTransport.Consumer()
	for {
		select {
		case rpc := <-requests:
			if req, ok := rpc.Command.(*raft.AppendEntriesRequest); ok && !mutKeepCovered {
				rpc.Command = uncovered(req, t.snapshot())
			}
			select {
			case t.incoming <- rpc:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// uncovered leaves out of a leader's request what lies in a snapshot of this member's own, which ends at covered. A log that
// was lost, or cut because entries in it were damaged, begins behind a snapshot that the leader knows nothing of; its next
// request may be about entries far before that. The library rejects those, and its leader then goes back entry by entry
// until it has nothing left but to send everything.
//
// What a snapshot covers is committed, and every leader whose term this member accepts has the same entries up to there
// (leader completeness), so there is nothing to be compared: a request that begins in the snapshot agrees, and what it
// brings of the snapshot is known. Its commit index must not lie beyond its own last entry then, as the library does not
// take care of that: what this member holds beyond was not compared.
func uncovered(req *raft.AppendEntriesRequest, covered uint64) *raft.AppendEntriesRequest {
	n := len(req.Entries)
	if req.PrevLogEntry >= covered || n == 0 && req.PrevLogEntry == 0 { // the latter is a heartbeat
		return req
	}
	out := *req
	out.LeaderCommitIndex = min(req.LeaderCommitIndex, max(lastOf(req), covered))
	out.PrevLogEntry, out.PrevLogTerm = 0, 0
	for len(out.Entries) > 0 && out.Entries[0].Index <= covered {
		out.Entries = out.Entries[1:]
	}
	return &out
}
