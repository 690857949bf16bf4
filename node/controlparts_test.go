package node

import (
	"reflect"
	"strconv"
	"strings"
	"testing"

	"kvmesh/node/peer"
	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// TestControlParts: a control state of any size is told in messages that fit into frames, and comes out as it was. Parts of
// two states, or one that ends early, do not.
func TestControlParts(t *testing.T) {
	for _, n := range []int{0, 1, 5, 20_000} {
		c := kv.Control{Cluster: kv.NewClusterID(), Epoch: firstEpoch, Revision: 77}
		for i := range n {
			c.Namespaces = append(c.Namespaces, kv.Namespace{
				ID: kv.NewNamespaceID(), Title: strings.Repeat("t", 100) + strconv.Itoa(i), WrappedKey: make([]byte, 90), Created: kv.Revision(i),
			})
		}
		b, err := appendControl(nil, c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readControl(b)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Fatalf("%d namespaces in %d bytes: %d came out, %v", n, len(b), len(got.Namespaces), err)
		}
		for _, bad := range [][]byte{b[:len(b)-1], b[:0], append(b[:len(b):len(b)], b...)} {
			if _, err := readControl(bad); err == nil {
				t.Errorf("%d namespaces: %d bytes of %d were taken", n, len(bad), len(b))
			}
		}
		parts := wire.FromControl(c, controlPart)
		if n == 20_000 && len(parts) < 10 {
			t.Errorf("%d parts", len(parts))
		}
		if len(parts) < 2 {
			continue
		}
		parts[1].Revision++
		var p controlParts
		for i, part := range parts[:2] {
			msg, err := peer.Encode(&part)
			if err != nil {
				t.Fatal(err)
			}
			if len(msg) > 2*controlPart {
				t.Errorf("a part of %d bytes", len(msg))
			}
			if _, whole, err := p.add(msg); whole || (err == nil) != (i == 0) {
				t.Errorf("part %d: whole %v, %v", i, whole, err)
			}
		}
	}
}
