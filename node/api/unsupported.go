package api

import (
	"kvmesh/raftstore/kv"
)

// unsupported lists what the protocol defines and this node does not do. Each is refused, because a request for a
// stronger promise must never be answered with a weaker one in silence. What is built leaves the table.
var unsupported = struct {
	calls []resource
}{
	calls: []resource{
		{"/v1/watch/{namespace}", map[string]endpoint{"GET": {"watch", nil, unsupportedCall("the watch call")}}},
	},
}

func unsupportedCall(what string) func(*surface, *call) error {
	return func(*surface, *call) error {
		return kv.Errorf(kv.CodeUnsupportedByPeer, "this node does not support %s yet", what)
	}
}
