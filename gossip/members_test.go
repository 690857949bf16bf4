package gossip_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/gossip"
)

func TestNodesStartedTogetherFindEachOtherFast(t *testing.T) {
	for _, p := range []gossip.Profile{gossip.LAN, gossip.Test} {
		for _, size := range []int{3, 6} {
			t.Run(fmt.Sprintf("%v/%d", p, size), func(t *testing.T) {
				inMesh(t, func(m *mesh) {
					m.grow(size, func(o *gossip.Options) { o.Profile = p })
					took := m.within(800*time.Millisecond, "all know all", whole(m.nodes, size))
					t.Logf("took %v", took)
				})
			})
		}
	}
}

func TestTwentyNodesConvergeAndNoticeADeath(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(20)
		m.within(3*time.Second, "all know all", whole(m.nodes, 20))
		for i, mem := range m.nodes[7].Members() {
			if want := fmt.Sprintf("node-%02d", i+1); mem.ID != want || mem.Self != (i == 7) {
				t.Fatalf("member %d is %+v", i, mem)
			}
			if want := fmt.Sprintf("10.0.0.%d:8582", i+1); mem.Gossip != want || mem.Cluster != clusterA || mem.Role != "edge" {
				t.Fatalf("member %d is %+v", i, mem)
			}
		}

		m.net.Partition([]string{m.nodes[19].ip})
		rest := m.nodes[:19]
		// Somebody probes it (2 s on average), waits 2 s, suspects it for 5.2 s.
		t.Logf("death noticed after %v", m.within(30*time.Second, "death is noticed", whole(rest, 19)))
		if mem, ok := rest[3].Member("node-20"); !ok || mem.State != gossip.Failed {
			t.Fatalf("the dead node is %+v", mem)
		}

		if err := rest[18].Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.within(time.Second, "departure is noticed", whole(rest[:18], 18))
		if mem, ok := rest[3].Member("node-19"); !ok || mem.State != gossip.Left {
			t.Fatalf("the node that left is %+v", mem)
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	for _, cut := range []time.Duration{2 * time.Minute, 30 * time.Minute} {
		t.Run(cut.String(), func(t *testing.T) {
			inMesh(t, func(m *mesh) {
				// Only the first node is a seed, so one half has none on its side.
				m.grow(20)
				m.within(3*time.Second, "all know all", whole(m.nodes, 20))
				var half []string
				for _, n := range m.nodes[10:] {
					half = append(half, n.ip)
				}
				m.net.Partition(half)
				m.within(time.Minute, "halves are apart", whole(m.nodes, 10))
				time.Sleep(cut)
				m.net.Heal()
				t.Logf("whole after %v", m.within(15*time.Second, "whole again", whole(m.nodes, 20)))
			})
		})
	}
}

// Nobody is seeded with a node of the other half: what heals is the memory of failed members alone.
func TestPartitionHealsWithoutSeeds(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(2)
		m.add(func(o *gossip.Options) { o.Seeds = []string{"10.0.0.2:8582"} })
		m.within(time.Second, "all know all", whole(m.nodes, 3))
		if err := m.nodes[1].Stop(t.Context()); err != nil { // the seed that knew both goes for good
			t.Fatal(err)
		}
		two := []*node{m.nodes[0], m.nodes[2]}
		m.within(time.Second, "two are left", whole(two, 2))
		m.net.Partition([]string{two[0].ip})
		time.Sleep(20 * time.Minute)
		m.net.Heal()
		m.within(15*time.Second, "whole again", whole(two, 2))
	})
}

func TestKnownPeersAreSeedsAfterARestart(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(2)
		n := m.add(func(o *gossip.Options) { o.Seeds, o.KnownPeers = nil, []string{"10.0.0.9:8582", "10.0.0.2:8582"} })
		m.within(time.Second, "all know all", whole(m.nodes, 3))
		if n.JoinState().Waiting() {
			t.Error("a node without seeds waits for one")
		}
	})
}

func TestSeedThatComesLater(t *testing.T) {
	inMesh(t, func(m *mesh) {
		early := m.add(func(o *gossip.Options) { o.Seeds = []string{"10.0.0.2:8582", "10.0.0.1:8582"} })
		time.Sleep(5 * time.Second)
		js := early.JoinState()
		if !js.Waiting() || js.Met || !js.Seeds[1].Self || js.Seeds[0].Self {
			t.Errorf("join state is %+v", js)
		}
		const want = "seed 10.0.0.2:8582 does not answer (connection refused), will keep trying"
		if js.Seeds[0].Err != want || !early.log.has(want) {
			t.Errorf("error %q, want %q, also in the log", js.Seeds[0].Err, want)
		}
		m.add()
		m.within(10*time.Second, "seed is found", whole(m.nodes, 2))
		if early.JoinState().Waiting() {
			t.Error("still waits")
		}

		m.net.Partition([]string{early.ip})
		time.Sleep(time.Minute)
		const silent = "seed 10.0.0.2:8582 does not answer (timeout), will keep trying"
		if !early.log.has(silent) || early.JoinState().Waiting() {
			t.Errorf("want %q in the log, and a node that has met others does not wait", silent)
		}
	})
}

func TestWrongKeyNeverJoins(t *testing.T) {
	for name, change := range map[string]func(*gossip.Options){
		"key and label": func(o *gossip.Options) { o.Key, o.Label = bytes.Repeat([]byte{8}, 32), "other" },
		"key only":      func(o *gossip.Options) { o.Key = bytes.Repeat([]byte{8}, 32) },
	} {
		t.Run(name, func(t *testing.T) {
			inMesh(t, func(m *mesh) {
				m.grow(2)
				n := m.add(change)
				time.Sleep(time.Minute)
				const want = "seed 10.0.0.1:8582 answered but closed the connection: wrong mesh key, or a node of another mesh"
				if got := n.JoinState().Seeds[0].Err; got != want || !n.log.has(want) || !n.JoinState().Waiting() {
					t.Errorf("error %q, want %q, also in the log", got, want)
				}
				if !whole(m.nodes[:2], 2)() || !whole(m.nodes[2:], 1)() {
					t.Error("it got in")
				}
			})
		})
	}
}

func TestForeignClusterIsRefused(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(3)
		m.add(func(o *gossip.Options) { o.Cluster = clusterB })
		m.within(time.Second, "the mesh stands", whole(m.nodes[:3], 3))
		time.Sleep(time.Minute)
		if !whole(m.nodes[:3], 3)() || !whole(m.nodes[3:], 1)() {
			t.Error("two meshes have merged")
		}
		if got := m.nodes[3].JoinState().Seeds[0].Err; !strings.Contains(got, "belongs to another mesh") {
			t.Errorf("the newcomer says %q", got)
		}
		if !m.nodes[0].log.has("node node-04 at 10.0.0.4:8582 belongs to another mesh") {
			t.Error("the seed does not say so")
		}
	})
}

func TestClusterLearnedLater(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(4, func(o *gossip.Options) { o.Cluster, o.Expect = "", 3 })
		m.within(time.Second, "all know all", whole(m.nodes, 4))
		for _, n := range m.nodes[:3] {
			if err := n.SetCluster(clusterA); err != nil {
				t.Fatal(err)
			}
			if err := n.SetExpect(0); err != nil {
				t.Fatal(err)
			}
		}
		m.within(time.Second, "everybody hears of it", func() bool {
			mem, ok := m.nodes[3].Member("node-01")
			return ok && mem.Cluster == clusterA && mem.Expect == 0
		})
		if !whole(m.nodes, 4)() {
			t.Error("a node without a cluster is no stranger")
		}
		if err := m.nodes[3].SetCluster(clusterB); err != nil {
			t.Fatal(err)
		}
		m.within(time.Second, "the stray is dropped", func() bool { return whole(m.nodes[:3], 3)() && whole(m.nodes[3:], 1)() })
		if err := m.nodes[0].SetCluster("xyz"); err == nil {
			t.Error("a cluster id that is none was taken")
		}
	})
}

func TestRoundTripsAndDoubt(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.net.SetDelay(func(from, to string) time.Duration {
			if strings.HasSuffix(from, ".2") || strings.HasSuffix(to, ".2") {
				return 60 * time.Millisecond
			}
			return time.Millisecond
		})
		m.grow(3)
		m.within(2*time.Second, "regions are measured", func() bool { return len(m.nodes[0].RegionRTT()) == 2 })
		if rtt := m.nodes[0].RegionRTT(); rtt["r1"] != 120*time.Millisecond || rtt["r2"] != 2*time.Millisecond {
			t.Errorf("round trips %v", rtt)
		}
		if rtt, ok := m.nodes[0].RTT("node-02"); !ok || rtt != 120*time.Millisecond {
			t.Errorf("round trip %v, %v", rtt, ok)
		}
		if _, ok := m.nodes[0].RTT("nobody"); ok {
			t.Error("nobody has a round trip")
		}

		state := func() gossip.State { mem, _ := m.nodes[0].Member("node-03"); return mem.State }
		m.nodes[0].Doubt("node-03") // answers
		time.Sleep(time.Second)
		if state() != gossip.Alive {
			t.Errorf("a node that answers is %s", state())
		}
		m.net.Partition([]string{m.nodes[2].ip})
		m.nodes[0].Doubt("node-03")
		m.within(3500*time.Millisecond, "two pings fail", func() bool { return state() != gossip.Alive })
		if state() != gossip.Suspect {
			t.Errorf("is %s before the pool can know", state())
		}
		m.net.Heal()
		m.within(3*time.Second, "it answers again", func() bool { return state() == gossip.Alive })
	})
}

func TestChangedIsClosedByAChange(t *testing.T) {
	inMesh(t, func(m *mesh) {
		m.grow(1)
		synctest.Wait()
		changed := m.nodes[0].Changed()
		time.Sleep(time.Minute)
		select {
		case <-changed:
			t.Fatal("closed without a change")
		default:
		}
		before := m.nodes[0].Members()
		m.add()
		<-changed
		if len(before) != 1 || len(m.nodes[0].Members()) != 2 {
			t.Errorf("snapshots have %d and %d members", len(before), len(m.nodes[0].Members()))
		}
	})
}
