package state

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

func id16(n uint64) (id [16]byte) {
	binary.BigEndian.PutUint64(id[8:], n)
	id[0] = 0xff // so that prefix ends have to carry
	return id
}

var (
	testCluster = kv.ClusterID(id16(100))
	testEpoch   = kv.Epoch(id16(200))
	ns1         = kv.NamespaceID(id16(1))
	ns2         = kv.NamespaceID(id16(2))
)

func initOp() command.Op {
	return command.Op{Kind: command.KindInit, Cluster: testCluster, Epoch: testEpoch, Namespace: ns1, Title: "default", WrappedKey: []byte("w1")}
}

func put(key, value string) command.Op {
	return command.Op{Kind: command.KindPut, Namespace: ns1, Key: key, WriteID: kv.WriteID(id16(7)), Size: int64(len(value)), Value: []byte(value)}
}

func putUntil(key, value string, expiry int64) command.Op {
	op := put(key, value)
	op.Expiry = expiry
	return op
}

func putBlob(key string, blob uint64) command.Op {
	return command.Op{Kind: command.KindPut, Namespace: ns1, Key: key, Size: 1 << 20, Blob: kv.BlobID(id16(blob))}
}

func del(key string) command.Op {
	return command.Op{Kind: command.KindDelete, Namespace: ns1, Key: key}
}

func when(op command.Op, c command.Cond) command.Op {
	op.Cond = c
	return op
}

func in(ns kv.NamespaceID, op command.Op) command.Op {
	op.Namespace = ns
	return op
}

func create(ns kv.NamespaceID, title string) command.Op {
	return command.Op{Kind: command.KindCreateNamespace, Namespace: ns, Title: title, WrappedKey: []byte("key of " + title)}
}

func drop(ns kv.NamespaceID) command.Op {
	return command.Op{Kind: command.KindDeleteNamespace, Namespace: ns}
}

func newEpoch(n uint64) command.Op {
	return command.Op{Kind: command.KindNewEpoch, Epoch: kv.Epoch(id16(n))}
}

// fixture is a state under test, with the log index that comes next.
type fixture struct {
	*State
	t    testing.TB
	next uint64
}

func openOn(t testing.TB, fs vfs.FS) *fixture {
	t.Helper()
	s, err := Open("state", Options{FS: fs, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && err != ErrClosed {
			t.Errorf("close: %v", err)
		}
	})
	return &fixture{State: s, t: t, next: s.Applied().Index + 1}
}

// newState opens an empty state in memory and applies KindInit.
func newState(t testing.TB) *fixture {
	t.Helper()
	f := openOn(t, vfs.NewMem())
	f.at(0, initOp())
	return f
}

// at applies one entry at a mesh time in seconds.
func (f *fixture) at(sec int64, ops ...command.Op) command.Result {
	f.t.Helper()
	rs, err := f.Apply([]Entry{{Index: f.next, Term: 1, Batch: command.Batch{MeshTime: sec * 1000, Ops: ops}}})
	if err != nil {
		f.t.Fatal(err)
	}
	f.next++
	return rs[0]
}

func (f *fixture) get(ns kv.NamespaceID, key string) kv.Item {
	f.t.Helper()
	it, _, err := f.Get(ns, key, false)
	if err != nil {
		f.t.Fatalf("get %q: %v", key, err)
	}
	return it
}

// dump is the whole content, one line a record, without the spaces named.
func dump(t testing.TB, s *State, without ...string) string {
	t.Helper()
	v, err := s.acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer v.release()
	var b strings.Builder
	err = scan(v.snap, nil, nil, func(k, val []byte) (bool, error) {
		for _, w := range without {
			if strings.HasPrefix(string(k), w) {
				return true, nil
			}
		}
		fmt.Fprintf(&b, "%q = %x\n", k, val)
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}
