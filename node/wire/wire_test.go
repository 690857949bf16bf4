package wire_test

import (
	"reflect"
	"testing"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// TestOpResults: the outcome of the largest transaction comes back over the wire as it was.
func TestOpResults(t *testing.T) {
	txn := command.OpResult{Code: kv.CodeConditionFailed, Revision: 1 << 40, AsOf: 1 << 41}
	for i := range kv.MaxBatchOps {
		m := command.OpResult{Revision: 1<<60 + kv.Revision(i), AsOf: 1 << 61, Current: 1 << 62}
		if i%2 == 0 {
			m.Code = kv.CodeNamespaceNotFound
		}
		txn.Members = append(txn.Members, m)
	}
	want := []command.OpResult{{Revision: 7, AsOf: 8, Current: 9}, txn}
	b, err := peer.Encode(&wire.ProposeResult{Outcomes: []wire.ProposeOutcome{
		{Epoch: kv.Epoch{1}, Revision: 5, Ops: wire.FromOpResults(want)},
		{Failed: true, Failure: peer.NewFailure(kv.Errorf(kv.CodeDiskFull, "full"))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	var got wire.ProposeResult
	if err := peer.Decode(b, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Outcomes) != 2 {
		t.Fatalf("got %+v", got)
	}
	if o := got.Outcomes[0]; !reflect.DeepEqual(wire.ToOpResults(o.Ops), want) || o.Revision != 5 || o.Failed {
		t.Errorf("got %+v", o)
	}
	if o := got.Outcomes[1]; !o.Failed || o.Failure.KV().Code != kv.CodeDiskFull {
		t.Errorf("got %+v", o)
	}
	if len(b) > peer.MaxPayload/2 {
		t.Errorf("%d bytes", len(b))
	}
}
