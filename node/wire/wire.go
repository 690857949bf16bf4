// Package wire holds what nodes say to each other on the peer port: the RPC methods with their arguments and results, and
// the messages of the feed and blob protocols. Structs travel as msgpack arrays of exactly their fields, so a struct that
// changes after a release gets a new method or frame number. Values never travel inside msgpack; they follow their message
// as raw bytes.
package wire

import (
	"kvmesh/node/peer"
	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// Methods of kvmesh-rpc/1.
const (
	MethodStatus  = 1  // what the node is and how far it has come
	MethodGrant   = 2  // a voter asks another for its consent to bootstrap
	MethodPropose = 3  // operations for the leader; the body holds encoded command.Batches, each behind its length in four bytes
	MethodFill    = 4  // one key's state; the body of the answer is the value
	MethodProbe   = 5  // how current is your state?
	MethodList    = 6  // one page of a listing; the body of the answer is an encoded ListPage
	MethodControl = 7  // the control state; the body of the answer is an encoded kv.Control
	MethodClock   = 8  // the wall clock, for mesh time
	MethodPull    = 9  // change records, for a node whose feed is cut; the body of the answer is frames of records
	MethodSpaces  = 40 // the counters of namespaces, from a voter's state
)

// Status answers MethodStatus.
type Status struct {
	ID, Role, Region, Version string
	Cluster                   kv.ClusterID
	Epoch                     kv.Epoch
	Revision                  kv.Revision // of a voter's state
	W                         kv.Revision
	FAgeMs                    int64 // -1 when nothing is proven
	Entries, Bytes            int64
	UptimeMs                  int64
	Raft                      string // leader, follower, candidate; empty on edges
	Leader                    string // node id
	Expect                    int
	Bootstrapped              bool
	Voters                    []string
	// Of a voter or learner: the line of its log, whether it has ever been a member, what it says of its own place in the
	// mesh (StandingMember …) with the reason, and how many large values it has to fetch yet.
	Lineage       kv.Lineage
	WasMember     bool
	Standing, Why string
	MissingBlobs  int
}

// GrantArgs asks for the consent to bootstrap a cluster of exactly Voters.
type GrantArgs struct {
	Candidate string
	Voters    []string // sorted
}

// GrantResult answers it.
type GrantResult struct {
	Granted bool
	Reason  string
}

// OpResult is command.OpResult. The Members of a member are empty.
type OpResult struct {
	Code                    string
	Revision, AsOf, Current kv.Revision
	Members                 []OpResult
}

// FromOpResults and ToOpResults convert.
func FromOpResults(rs []command.OpResult) []OpResult {
	if len(rs) == 0 {
		return nil
	}
	out := make([]OpResult, len(rs))
	for i, r := range rs {
		out[i] = OpResult{Code: string(r.Code), Revision: r.Revision, AsOf: r.AsOf, Current: r.Current, Members: FromOpResults(r.Members)}
	}
	return out
}

// ToOpResults is the inverse of FromOpResults.
func ToOpResults(rs []OpResult) []command.OpResult {
	if len(rs) == 0 {
		return nil
	}
	out := make([]command.OpResult, len(rs))
	for i, r := range rs {
		out[i] = command.OpResult{Code: kv.Code(r.Code), Revision: r.Revision, AsOf: r.AsOf, Current: r.Current, Members: ToOpResults(r.Members)}
	}
	return out
}

// ProposeResult answers MethodPropose, with an outcome for each batch, in their order.
type ProposeResult struct {
	Outcomes []ProposeOutcome
}

// ProposeOutcome is what became of one batch.
type ProposeOutcome struct {
	Failed   bool
	Failure  peer.Failure // when it failed
	Epoch    kv.Epoch
	MeshTime int64
	Revision kv.Revision
	Ops      []OpResult
}

// FillArgs is cache.FillRequest; Store asks the leader for a state that is current after the question arrived.
type FillArgs struct {
	Namespace  kv.NamespaceID
	Key        string
	Epoch      kv.Epoch
	Least      kv.Revision
	MaxAgeNs   int64
	Have       bool
	HaveAbsent bool
	HaveRev    kv.Revision
	Tier       string
}

// FillResult is cache.FillAnswer. Sealed says that metadata and body are as the central store holds them, and have to be
// opened by the asker.
type FillResult struct {
	Epoch       kv.Epoch
	NotModified bool
	Absent      bool
	Revision    kv.Revision
	AsOf        kv.Revision
	AgeNs       int64
	Expiry      int64
	Size        int64
	WriteID     kv.WriteID
	Blob        kv.BlobID
	Metadata    []byte
	Sealed      bool
	HasBody     bool
}

// ProbeArgs asks how current a node's state is.
type ProbeArgs struct {
	Epoch kv.Epoch
}

// ProbeResult says: the state at Revision was current AgeNs before this answer.
type ProbeResult struct {
	Epoch    kv.Epoch
	Revision kv.Revision
	AgeNs    int64
	MeshTime int64 // unix milliseconds
	Leader   bool  // the leader itself answered, having confirmed its leadership after the probe arrived
}

// ListArgs asks for one page.
type ListArgs struct {
	Namespace                kv.NamespaceID
	Prefix, Delimiter, After string
	Limit                    int
	Values                   bool
	Epoch                    kv.Epoch
	Least                    kv.Revision
	MaxAgeNs                 int64 // < 0: any age will do
	Strong                   bool  // current after the question arrived: only the leader can say so
}

// ListItem is one key of a page, sealed.
type ListItem struct {
	Key             string
	Revision        kv.Revision
	Expiry          int64
	Size            int64
	WriteID         kv.WriteID
	Metadata, Value []byte
	HasValue        bool
}

// ListPage is the body of MethodList's answer.
type ListPage struct {
	Epoch    kv.Epoch
	AsOf     kv.Revision
	Items    []ListItem
	Prefixes []string
	Next     string
	Complete bool
	AgeNs    int64 // how long ago the state was current at the latest; < 0: nothing is proven
}

// ControlArgs asks for the control state, at least as new as Least.
type ControlArgs struct {
	Epoch kv.Epoch
	Least kv.Revision
}

// ClockResult is a wall clock, in unix nanoseconds.
type ClockResult struct {
	UnixNano int64
}

// SpacesArgs asks for the counters of namespaces, at least as new as Least.
type SpacesArgs struct {
	Epoch kv.Epoch
	Least kv.Revision
	IDs   []kv.NamespaceID
}

// SpaceStats counts one namespace.
type SpaceStats struct {
	ID          kv.NamespaceID
	Keys, Bytes int64
}

// SpacesResult answers it. Namespaces that the voter does not know are left out.
type SpacesResult struct {
	Spaces []SpaceStats
}

// PullArgs asks for the records after Revision.
type PullArgs struct {
	Epoch    kv.Epoch
	Revision kv.Revision
	Any      bool // as in Subscribe
}

// PullResult says where the answering node stands; the records are in the body, each behind its length in four bytes.
type PullResult struct {
	Epoch      kv.Epoch
	Revision   kv.Revision
	TooFarBack bool // a voter can say more exactly what has changed
}

// Frame types of kvmesh-feed/1. The client sends one FeedSubscribe; the server sends the others until either side goes.
const (
	FeedSubscribe byte = 1 // Subscribe
	FeedPosition  byte = 2 // Position: the server's epoch, and the revision at which it begins
	FeedRecord    byte = 3 // an encoded kv.Record
	FeedControl   byte = 4 // Control; its parts follow each other
	FeedTick      byte = 5 // Tick, all the time: its absence says that the server is cut off, or dead
)

// Subscribe says where the client stands. Revision 0 means: I hold nothing, begin at your newest.
type Subscribe struct {
	Epoch    kv.Epoch
	Revision kv.Revision
	// Any takes "everything may have changed" from a relay whose records do not reach back that far. Without it such a relay
	// hangs up, because a voter can be more exact.
	Any bool
}

// Position is where the server's stream begins.
type Position struct {
	Epoch    kv.Epoch
	Revision kv.Revision
}

// Tick carries what changes all the time.
type Tick struct {
	MeshTime int64  // unix milliseconds
	Leader   string // node id, empty when unknown
	Members  Members
	Depth    int      // feeds between the server and the store: 0 on a voter, 1 on a relay
	Epoch    kv.Epoch // of the newest record that the server has
	Revision kv.Revision
}

// Control is kv.Control, or a part of one, in a form with a field order.
type Control struct {
	Cluster    kv.ClusterID
	Epoch      kv.Epoch
	Revision   kv.Revision
	Namespaces []Namespace
	More       bool // further namespaces follow, in a Control of the same cluster, epoch and revision
}

// Namespace is kv.Namespace.
type Namespace struct {
	ID         kv.NamespaceID
	Title      string
	WrappedKey []byte
	Created    kv.Revision
}

// namespaceOverhead is what a namespace takes on the wire beside its title and key, at most.
const namespaceOverhead = 64

// FromControl makes messages of about the given size, at least one; KV is its inverse for each.
func FromControl(c kv.Control, size int) []Control {
	head := Control{Cluster: c.Cluster, Epoch: c.Epoch, Revision: c.Revision}
	out, n := []Control{head}, 0
	for _, ns := range c.Namespaces {
		last := &out[len(out)-1]
		if n >= size {
			last.More, n = true, 0
			out = append(out, head)
			last = &out[len(out)-1]
		}
		last.Namespaces = append(last.Namespaces, Namespace{ID: ns.ID, Title: ns.Title, WrappedKey: ns.WrappedKey, Created: ns.Created})
		n += len(ns.Title) + len(ns.WrappedKey) + namespaceOverhead
	}
	return out
}

// KV is the control state as the vocabulary has it.
func (c Control) KV() kv.Control {
	out := kv.Control{Cluster: c.Cluster, Epoch: c.Epoch, Revision: c.Revision}
	for _, n := range c.Namespaces {
		out.Namespaces = append(out.Namespaces, kv.Namespace{ID: n.ID, Title: n.Title, WrappedKey: n.WrappedKey, Created: n.Created})
	}
	return out
}

// Frame types of kvmesh-blob/1. A connection carries any number of questions, one after the other.
const (
	BlobPut   byte = 1 // BlobRef; BlobData frames follow, then BlobEnd
	BlobGet   byte = 2 // BlobRef with Offset and Length; answered by BlobHead, then raw bytes
	BlobData  byte = 3 // raw bytes, at most 256 KiB
	BlobEnd   byte = 4 // BlobTotal: the number of bytes; the server fsyncs and answers BlobDone
	BlobHead  byte = 5 // BlobHeader
	BlobDone  byte = 6 // empty: fsynced
	BlobError byte = 7 // BlobFailure
	BlobStat  byte = 8 // BlobRef; answered by BlobHead with the checksums of the server's own copy
)

// BlobRef names a blob.
type BlobRef struct {
	Namespace kv.NamespaceID
	Blob      kv.BlobID
	Offset    int64
	Length    int64 // of what is wanted; 0 = up to the end
	Own       bool  // from the server's own disk only: it does not ask others for what it lacks
}

// BlobTotal is a size in bytes.
type BlobTotal struct {
	Size int64
}

// BlobHeader is the size of a blob, and the checksums of its segments where they were asked for.
type BlobHeader struct {
	Size int64
	Sums []byte
}

// BlobFailure says why a voter could not do it.
type BlobFailure struct {
	Code, Message string
}
