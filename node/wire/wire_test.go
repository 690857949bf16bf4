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
	b, err := peer.Encode(&wire.ProposeResult{Epoch: kv.Epoch{1}, Revision: 5, Ops: wire.FromOpResults(want)})
	if err != nil {
		t.Fatal(err)
	}
	var got wire.ProposeResult
	if err := peer.Decode(b, &got); err != nil {
		t.Fatal(err)
	}
	if ops := wire.ToOpResults(got.Ops); !reflect.DeepEqual(ops, want) || got.Revision != 5 {
		t.Errorf("got %+v", got)
	}
	if len(b) > peer.MaxPayload/2 {
		t.Errorf("%d bytes", len(b))
	}
}
