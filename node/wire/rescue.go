package wire

import "kvmesh/raftstore/kv"

// MethodMemberInfo asks a voter or learner what the leader has to know of it all the time.
const MethodMemberInfo = 41

// MemberInfoResult answers it. It is raftstore.MemberInfo.
type MemberInfoResult struct {
	DiskFull bool  // there is no room for writes
	Kinds    uint8 // the highest kind of command that the node knows
}

// Frame types of kvmesh-rescue/1, one exchange a connection: a voter that has found damage in its files is given the state
// of another one.
const (
	RescueAsk   byte = 1 // RescueArgs
	RescueWait  byte = 2 // empty: the voter that was asked is at work; any number of them
	RescueHead  byte = 3 // RescueStart; then raw bytes, as many as it says
	RescueError byte = 4 // RescueFailure, in place of RescueHead
)

// RescueArgs is raftstore.RescueRequest.
type RescueArgs struct {
	Cluster     kv.ClusterID
	Lineage     kv.Lineage
	Term, Least uint64
	Leader      bool
}

// RescueStart says what follows: the file of a snapshot, and the archive of a checkpoint of Size bytes.
type RescueStart struct {
	Meta []byte
	Size int64
}

// RescueFailure says why nothing does.
type RescueFailure struct {
	Code, Message string
	Leader        string // node id: whom to ask instead; "" = nobody is known
	RetryAfterMs  int64
}
