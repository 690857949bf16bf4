package raftstore

import (
	"sync"
	"testing"
	"testing/synctest"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// Transactions fill entries by their members, and their results come back whole to whoever proposed them.
func TestTransactionsInEntries(t *testing.T) {
	virtual(t, func(t *testing.T) {
		c, s, slow := startStalling(t)
		txn := func(call, members int) command.Op {
			op := command.Op{Kind: command.KindTxn}
			for i := range members {
				op.Members = append(op.Members, c.put(key(call*members+i), "v"))
			}
			return op
		}
		if _, err := s.Propose(t.Context(), []command.Op{txn(0, kv.MaxBatchOps), c.put("more", "v")}); !isCode(err, kv.CodeInvalidParameter) {
			t.Errorf("more operations than an entry has: %v", err)
		}
		release := slow.stall()
		before := slow.count()
		const calls, members = 9, 300 // three of them fill an entry
		var wg sync.WaitGroup
		for i := range calls + 1 {
			if i == 0 { // it is with the disk while the others come
				wg.Go(func() { c.mustPut(s, "first", "v") })
				synctest.Wait()
				continue
			}
			wg.Go(func() {
				res, err := s.Propose(t.Context(), []command.Op{txn(i, members), c.put(key(i), "w")})
				if err != nil || len(res.Ops) != 2 || len(res.Ops[0].Members) != members {
					t.Errorf("call %d: %+v %v", i, res, err)
					return
				}
				r := res.Ops[0].Members
				if r[members-1].Revision != r[0].Revision+members-1 || res.Ops[1].Revision != r[members-1].Revision+1 {
					t.Errorf("call %d: revisions %d to %d, then %d", i, r[0].Revision, r[members-1].Revision, res.Ops[1].Revision)
				}
				if item, _, err := s.State().Get(c.ns, key(i*members+members-1), false); err != nil || item.Revision != r[members-1].Revision {
					t.Errorf("call %d got another's result: %+v, %+v %v", i, r[members-1], item, err)
				}
			})
		}
		synctest.Wait()
		release()
		wg.Wait()
		if n := slow.count() - before; n != 1+calls/3 {
			t.Errorf("%d transactions of %d took %d entries", calls, members, n)
		}
	})
}
