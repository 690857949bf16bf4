package node

import (
	"context"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// NewEpoch begins a new history: a replicated command after which no position, bookmark or ETag given before means
// anything any more. Keys stay as they are. It may be called on any node, and returns when the command is committed; this
// node is in the new epoch then, the others follow one crossing later.
//
// Errors are those of a write; CodeEpochChanged says that another epoch has begun meanwhile and that nothing was changed.
func (n *Node) NewEpoch(ctx context.Context) error {
	old, _ := n.cache.Position()
	op := command.Op{Kind: command.KindNewEpoch, Epoch: kv.NewEpoch(n.clock.Now(), old)}
	res, err := n.service.proposer.propose(ctx, []command.Op{op})
	if err != nil {
		return err
	}
	n.cache.Adopt(res.Epoch, 0) // before anything is made of the answer; the feed tells the revision
	switch code := res.Ops[0].Code; code {
	case "":
		return nil
	case kv.CodeInternal:
		return kv.Errorf(kv.CodeEpochChanged, "the mesh is in epoch %s already, which is not older than the one proposed; begin another if it is still needed", res.Epoch)
	default:
		return kv.Errorf(code, "the store refused the new epoch")
	}
}
