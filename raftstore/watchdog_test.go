package raftstore

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// hangingCluster is three voters whose disks can be made to hang, and the errors by which they would have ended.
type hangingCluster struct {
	*cluster
	disks map[string]*stallLog
	mu    sync.Mutex // guards ended
	ended map[string]time.Time
}

func newHangingCluster(t *testing.T, profile Profile) *hangingCluster {
	h := &hangingCluster{cluster: newCluster(t, "a", "b", "c"), disks: map[string]*stallLog{}, ended: map[string]time.Time{}}
	h.adapt = func(id string, o *Options) {
		o.Profile = profile
		slow := new(stallLog)
		h.disks[id] = slow
		o.LogStore = func(dir string) (Log, error) {
			var err error
			slow.Log, err = h.logs(dir)
			return slow, err
		}
		o.Fatal = func(error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			if h.ended[id].IsZero() {
				h.ended[id] = time.Now()
			}
		}
	}
	h.start()
	return h
}

func (h *hangingCluster) end(id string) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ended[id]
}

// A leader whose disk hangs cuts itself off, so that the others elect, and ends itself. Writes are back within ten seconds;
// nobody is told that the one that hangs failed, and no strong read is answered by a node that does not know any more.
func TestLeaderDiskHangs(t *testing.T) {
	for _, profile := range []Profile{ProfileLAN, ProfileWAN} {
		virtual(t, func(t *testing.T) {
			h := newHangingCluster(t, profile)
			old := h.leader()
			id := old.opts.NodeID
			h.mustPut(old, "before", "v")
			release := h.disks[id].stall()
			hung := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() {
				_, err := old.Propose(t.Context(), []command.Op{h.put("hangs", "v")})
				if !isCode(err, kv.CodeOutcomeUnknown) || time.Since(hung) > stallCut+100*time.Millisecond {
					t.Errorf("after %v: %v", time.Since(hung), err)
				}
			})
			synctest.Wait()
			wg.Go(func() { // waits for its turn, and is certainly not written
				_, err := old.Propose(t.Context(), []command.Op{h.put("waits", "v")})
				if !isCode(err, kv.CodeNoLeader) || time.Since(hung) > stallCut+100*time.Millisecond {
					t.Errorf("after %v: %v", time.Since(hung), err)
				}
			})
			lead := h.leader(id)
			h.mustPut(lead, "after", "v")
			gap := time.Since(hung)
			t.Logf("profile %d: writes are back after %v", profile, gap)
			if gap > 10*time.Second {
				t.Errorf("profile %d: no writes for %v", profile, gap)
			}
			wg.Wait()
			try, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if c, err := old.Confirm(try); err == nil {
				t.Errorf("the node whose disk hangs has confirmed its leadership: %+v", c)
			}
			if leader, self := old.Leader(); leader != "" || self {
				t.Errorf("it names %q", leader)
			}
			time.Sleep(time.Until(hung.Add(stallEnd + time.Second)))
			if end := h.end(id); end.Sub(hung) < stallEnd || end.Sub(hung) > stallEnd+time.Second {
				t.Errorf("it ends itself after %v", end.Sub(hung))
			}
			release()
			time.Sleep(5 * time.Second) // nothing ended the process here, so it follows
			h.converge(h.mustPut(h.leader(), "end", "v").Revision)
			if item, _, err := old.State().Get(h.ns, "waits", true); err != nil || !item.Absent {
				t.Errorf("a write that was refused has landed: %+v, %v", item, err)
			}
		})
	}
}

// A disk that comes back in time costs the leadership and nothing else, and one of a follower costs nothing.
func TestDiskHangsForAWhile(t *testing.T) {
	virtual(t, func(t *testing.T) {
		h := newHangingCluster(t, ProfileLAN)
		for range 3 {
			for _, who := range []*Store{h.leader(), h.follower()} {
				id := who.opts.NodeID
				release := h.disks[id].stall()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if _, err := h.leader().Propose(ctx, []command.Op{h.put("k", "v")}); err != nil && !isCode(err, kv.CodeOutcomeUnknown) {
					t.Error(err)
				}
				cancel()
				time.Sleep(stallCut + time.Second)
				release()
				time.Sleep(2 * time.Second)
				if !h.end(id).IsZero() {
					t.Fatalf("%s would have ended", id)
				}
				h.converge(h.mustPut(h.leader(), "k", "v").Revision)
			}
		}
	})
}
