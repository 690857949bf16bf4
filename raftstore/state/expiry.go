package state

import (
	"fmt"
	"math"
	"sync/atomic"

	"kvmesh/raftstore/kv"
)

// never is later than every expiry.
const never = math.MaxInt64

// NextExpiry is when the next key expires, in unix seconds of mesh time, or has expired and not been swept yet; false when
// no key ever will. A sweep at or after that moment finds something, one before it does not. One that runs just after a
// commit may miss what that commit has brought.
func (s *State) NextExpiry() (at int64, ok bool, err error) {
	from := s.expiry.bound.Load() // before the view
	v, err := s.acquire()
	if err != nil {
		return 0, false, err
	}
	defer v.release()
	least := int64(0)
	if from != nil {
		least = *from
	}
	found := int64(never)
	err = scan(v.snap, v.bank.expiryKey(nil, least, kv.NamespaceID{}, ""), prefixEnd([]byte(v.bank.expiry)), func(k, _ []byte) (bool, error) {
		if found, _, _, ok = splitExpiryKey(k); !ok {
			return false, fmt.Errorf("%w: expiry index key of %d bytes", errCorrupt, len(k))
		}
		return false, nil
	})
	if err != nil {
		return 0, false, err
	}
	s.expiry.bound.CompareAndSwap(from, &found)
	if !ok {
		return 0, false, nil
	}
	return found, true, nil
}

// soonest remembers a lower bound of the expiries in the index. What was swept, or got another expiry, leaves tombstones at
// the front of the index, a million of them after a bad hour, and NextExpiry would pass over all of them every time.
//
// Every commit that adds an expiry puts a new value in place, after its view has been published, even when the number stays
// the same. Interleaving: NextExpiry loads the bound, then finds A in a view that lacks a commit's B < A. Either the commit
// has replaced the bound before NextExpiry does, whose exchange then fails, or it does so afterwards, and lowers A to B.
type soonest struct{ bound atomic.Pointer[int64] } // nil: nothing is known

func (e *soonest) added(expiry int64) {
	if expiry == never {
		return
	}
	for {
		old := e.bound.Load()
		next := int64(0)
		if old != nil {
			next = min(*old, expiry)
		}
		if e.bound.CompareAndSwap(old, &next) {
			return
		}
	}
}
