package node

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/node/wire"
	"kvmesh/raftstore/kv"
)

// Whoever has an older idea of who is a member does not know who leads either; one who has no proven idea may.
func TestDirectoryHeard(t *testing.T) {
	old, young := kv.Epoch{1}, kv.Epoch{2}
	d := newDirectory("self", "here", nil)
	for i, step := range []struct {
		leader  string
		m       wire.Members
		want    string // members
		leading string
	}{
		{"", wire.Members{Voters: []string{"a", "b"}}, "a b", ""}, // better than nothing
		{"a", wire.Members{Epoch: old, Index: 5, Voters: []string{"a", "b", "c"}}, "a b c", "a"},
		{"b", wire.Members{Epoch: old, Index: 4, Voters: []string{"b", "c"}}, "a b c", "a"}, // was removed, perhaps
		{"c", wire.Members{Epoch: old, Voters: []string{"b", "c"}}, "a b c", "c"},           // does not know yet what is committed
		{"b", wire.Members{Epoch: old, Index: 7, Voters: []string{"b", "c"}, Learners: []string{"d"}}, "b c", "b"},
		{"x", wire.Members{Epoch: young, Index: 2, Voters: []string{"x"}}, "x", "x"}, // recovered
		{"b", wire.Members{Epoch: old, Index: 9, Voters: []string{"b", "c"}}, "x", "x"},
		{"", wire.Members{Epoch: young, Index: 2, Voters: []string{"x"}}, "x", "x"},
	} {
		d.heard(step.leader, step.m)
		leader, _ := d.Leader()
		if got := strings.Join(d.Configured(), " "); got != step.want || leader != step.leading {
			t.Errorf("step %d: members %q, leader %q; want %q, %q", i, got, leader, step.want, step.leading)
		}
	}
}

// A leader does not take the writes of somebody who knows a newer epoch: the mesh was recovered without it.
func TestBehindEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newVoterRig(t)
		for {
			if _, err := r.store.Confirm(t.Context()); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		own := r.store.State().Applied().Epoch
		for _, known := range []kv.Epoch{{}, own} {
			if err := behindEpoch(r.store, known); err != nil {
				t.Errorf("known %v, own %v: %v", known, own, err)
			}
		}
		if err := behindEpoch(r.store, kv.NewEpoch(0, own)); kv.CodeOf(err) != kv.CodeNotLeader {
			t.Errorf("a write was taken in a superseded epoch: %v", err)
		}
	})
}
