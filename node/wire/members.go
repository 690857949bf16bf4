package wire

import "kvmesh/raftstore/kv"

// Methods of kvmesh-rpc/1 about membership.
const (
	MethodMembers      = 30 // who belongs to the central store
	MethodChangeMember = 31 // for the leader: take a node in or out, or hand leadership over
)

// Members is the membership of the central store as a voter or learner knows it. (Epoch, Index) orders two of them.
type Members struct {
	Epoch            kv.Epoch
	Index            uint64 // 0: it is not known to be committed
	Voters, Learners []string
}

// MembersResult answers MethodMembers. Only the leader's own answer, Confirmed after the question arrived, is authority; any
// other one says whom to ask.
type MembersResult struct {
	Leader    string
	Confirmed bool
	Lineage   kv.Lineage
	Members   Members
	Progress  []MemberProgress // when Confirmed
	Refused   string           // when Confirmed: why the asker is not taken in, if it is not
}

// MemberProgress is how one member follows the leader.
type MemberProgress struct {
	ID            string
	Match, Behind uint64 // log index up to which it agrees, entries from there to the end
	HeardMs       int64  // how long ago it answered
	WellMs        int64  // how long it has answered without a gap and kept close to the end; 0 = it does not now
	Stable, Dead  bool
}

// The actions of MethodChangeMember.
const (
	ActionJoin     = "join"
	ActionRemove   = "remove"
	ActionTransfer = "transfer"
)

// ChangeArgs asks the leader for a change. Node is what the user wrote: an id, the beginning of one, or a name.
type ChangeArgs struct {
	Action string
	Node   string
	Vote   bool // ActionJoin: a learner gets a vote
}

// ChangeResult says what was done.
type ChangeResult struct {
	ID, Name string
	Done     string // for people
}

// ProposeArgs of MethodPropose.
type ProposeArgs struct {
	Epoch kv.Epoch // the newest that the asker knows: a leader that is behind it has been superseded
}
