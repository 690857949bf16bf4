package gossip_test

import (
	"fmt"
	"testing"
	"time"

	"kvmesh/gossip"
)

func TestHintReachesEveryNodeOnceDespiteLoss(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(20)
		m.within(3*time.Second, "all know all", whole(m.nodes, 20))
		m.net.SetLoss(0.2)
		const hints = 50
		for i := range hints {
			m.nodes[i%20].Hint(fmt.Appendf(nil, "hint-%d", i))
			m.nodes[(i+1)%20].Hint(fmt.Appendf(nil, "hint-%d", i)) // two senders of one record
		}
		m.within(3*time.Minute, "everybody has heard all", func() bool {
			for at, n := range m.nodes {
				n.mu.Lock()
				heard := len(n.heard)
				n.mu.Unlock()
				// The two senders of a hint do not hear it.
				if own := senders(hints, at); heard != hints-own {
					return false
				}
			}
			return true
		})
		time.Sleep(3 * time.Minute) // push/pull brings recent hints again
		for _, n := range m.nodes {
			n.mu.Lock()
			for h, times := range n.heard {
				if times != 1 {
					t.Errorf("%s heard %s %d times", n.ip, h, times)
				}
			}
			n.mu.Unlock()
		}
	})
}

// senders is how many of the hints node at has sent.
func senders(hints, at int) (own int) {
	for i := range hints {
		if i%20 == at || (i+1)%20 == at {
			own++
		}
	}
	return own
}

// The packets of the hint are long gone when the third node joins: the state exchange brings it.
func TestStateExchangeCarriesRecentHints(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(2)
		m.within(time.Second, "both know both", whole(m.nodes, 2))
		m.nodes[1].Hint([]byte("early"))
		time.Sleep(time.Minute)
		late := m.add()
		m.within(time.Second, "the hint has come", func() bool {
			late.mu.Lock()
			defer late.mu.Unlock()
			return late.heard["early"] == 1
		})
	})
}

func TestHintGoesToEveryRegionAtOnce(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.net.SetDelay(func(from, to string) time.Duration { return 10 * time.Millisecond })
		m.grow(6)
		m.within(2*time.Second, "all know all", whole(m.nodes, 6))
		m.nodes[0].Hint([]byte("now"))
		time.Sleep(11 * time.Millisecond) // less than a gossip interval
		for _, n := range m.nodes[1:] {
			n.mu.Lock()
			if n.heard["now"] != 1 {
				t.Errorf("%s has not heard it after one crossing", n.ip)
			}
			n.mu.Unlock()
		}
	})
}

func TestFloodOfHintsStaysBounded(t *testing.T) {
	inMesh(t, func(m *mesh) {
		block := make(chan struct{})
		m.grow(3)
		slow := m.add(func(o *gossip.Options) { o.OnHint = func([]byte) { <-block } })
		defer close(block)
		m.within(2*time.Second, "all know all", whole(m.nodes, 4))
		payload := make([]byte, gossip.MaxHintBytes)
		for i := range 20_000 {
			copy(payload, fmt.Sprint(i))
			m.nodes[0].Hint(payload)
			if i%500 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		m.nodes[0].Hint(make([]byte, gossip.MaxHintBytes+1))
		m.nodes[0].Hint([]byte("last"))
		time.Sleep(2 * time.Second)
		const queue, dropped = "kvmesh_gossip_queue_bytes", "kvmesh_gossip_dropped_total"
		if got := m.nodes[0].counter(t, dropped, "hint_queue"); got == 0 {
			t.Error("the queue of the sender dropped nothing")
		}
		if got := slow.counter(t, dropped, "hint_out"); got == 0 {
			t.Error("a blocked OnHint cost nothing")
		}
		if got := m.nodes[0].counter(t, dropped, "hint_size"); got != 1 {
			t.Errorf("%v hints above the limit, want 1", got)
		}
		m.within(2*time.Minute, "queues run empty", func() bool {
			for _, n := range m.nodes {
				families, err := n.reg.Gather()
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range families {
					if f.GetName() == queue && f.GetMetric()[0].GetGauge().GetValue() > 0 {
						return false
					}
				}
			}
			return true
		})
		for _, n := range m.nodes[1:3] {
			n.mu.Lock()
			if n.heard["last"] != 1 {
				t.Errorf("%s lost the newest hint in the flood", n.ip)
			}
			n.mu.Unlock()
		}
		if !whole(m.nodes, 4)() {
			t.Error("the flood cost members")
		}
	})
}
