// Package command is the log of the central store: what a Raft entry holds, and its versioned binary codec. A log command
// is always a batch of operations; the write combiner only fills it. Everything that depends on time or chance stands in
// the command already (the proposer put it there), so that applying it is deterministic.
package command

import (
	"kvmesh/raftstore/kv"
)

// Kind is the kind of one operation. A new kind gets a new number, never an old one's.
type Kind uint8

// The kinds.
const (
	// KindInit is the first command of a cluster: its id, its first epoch, and the namespace "default".
	KindInit Kind = 1
	// KindPut sets value, metadata and expiry of one key.
	KindPut Kind = 2
	// KindDelete removes one key.
	KindDelete Kind = 3
	// KindCreateNamespace, KindRenameNamespace and KindDeleteNamespace change the control state.
	KindCreateNamespace Kind = 4
	KindRenameNamespace Kind = 5
	KindDeleteNamespace Kind = 6
	// KindSweep deletes up to Limit keys that have expired by the batch's mesh time.
	KindSweep Kind = 7
	// KindTrim drops the change index up to and including Revision.
	KindTrim Kind = 8
	// KindNewEpoch begins a new history, Epoch, which must be greater than the present one. Revisions go on counting.
	KindNewEpoch Kind = 9
	// KindTxn is a transaction: its Members are carried out all together, or none of them.
	KindTxn Kind = 10
	// KindAllow says that every member knows the kinds up to Limit, so that they may be proposed from now on.
	KindAllow Kind = 12
	// KindRestoreBegin, KindRestoreChunk and KindRestoreEnd replace the whole content; see Restore. An end that commits must be
	// the first operation of its entry, because nothing before it would be of the same history.
	KindRestoreBegin Kind = 13
	KindRestoreChunk Kind = 14
	KindRestoreEnd   Kind = 15

	// KindCheck is a condition without a write. It stands only among the members of a transaction, whose other members are
	// KindPut and KindDelete. Its number is far from the others, which are those of operations by themselves.
	KindCheck Kind = 128
)

// BaseKinds are the kinds up to which every build knows all, beside KindAllow; Highest is the last one that this build
// knows. What lies between has to be allowed before it is proposed. What a kind may have among its members belongs to it.
const (
	BaseKinds = KindNewEpoch
	Highest   = KindRestoreEnd
)

// CondKind says what a conditional write demands of the key's present state.
type CondKind uint8

// The conditions. A key that has expired by the batch's mesh time counts as absent.
const (
	CondNone     CondKind = 0
	CondAbsent   CondKind = 1 // If-None-Match: *
	CondPresent  CondKind = 2 // If-Match: *
	CondRevision CondKind = 3 // If-Match: "<etag>"
)

// Cond is the condition of a write.
type Cond struct {
	Kind     CondKind
	EpochTag [4]byte // the last four bytes of the epoch, as the ETag carries them (CondRevision)
	Revision kv.Revision
}

// Op is one operation. Which fields count depends on Kind.
type Op struct {
	Kind      Kind
	Namespace kv.NamespaceID
	Key       string
	Cond      Cond

	// KindPut
	WriteID  kv.WriteID
	Expiry   int64     // unix seconds of mesh time, 0 = never
	Size     int64     // plaintext bytes of the value
	Metadata []byte    // sealed, nil = none
	Value    []byte    // sealed; nil when Blob is set
	Blob     kv.BlobID // set when the value travelled out of band

	// KindInit (Cluster, Epoch, and Namespace, Title, WrappedKey of the default namespace), KindCreateNamespace and
	// KindRenameNamespace (Title, WrappedKey), KindNewEpoch and KindRestoreEnd (Epoch)
	Cluster    kv.ClusterID
	Epoch      kv.Epoch
	Title      string
	WrappedKey []byte

	Limit    uint32      // KindAllow, KindRestoreEnd; KindSweep: Expiry says from which one on it looks, so that it need not pass over what was swept before
	Revision kv.Revision // KindTrim, KindRestoreEnd; of a record in a chunk
	Restore  *Restore    // KindRestoreBegin, KindRestoreChunk, KindRestoreEnd

	// Members of a KindTxn, at most kv.MaxBatchOps. The conditions of all of them are judged by the state before the
	// transaction; then the writes are carried out in their order.
	Members []Op
}

// Weight is what op counts for in a batch of kv.MaxBatchOps: a transaction as many as it has members.
func (op *Op) Weight() int { return max(1, len(op.Members)) }

// Batch is one log command.
type Batch struct {
	// MeshTime in unix milliseconds, by the proposer. The state machine keeps the largest it has seen, so that mesh time
	// never goes back.
	MeshTime int64
	Ops      []Op
}

// OpResult is the outcome of one operation.
type OpResult struct {
	// Code is empty when the operation was carried out; otherwise CodeConditionFailed, CodeNamespaceNotFound,
	// CodeNamespaceExists or CodeInternal, and nothing was changed. For those of a restore see state's restore.go.
	Code kv.Code
	// Revision that the operation took; 0 when it changed nothing (a delete of a missing key, a failed operation).
	Revision kv.Revision
	// AsOf is the revision at which the outcome is known to be the state of the key: the last revision of the whole batch,
	// unless a later operation of the batch touched the key again, then this operation's own.
	AsOf kv.Revision
	// Current is the revision of the key's present state that a failed condition met, 0 = absent. A KindCheck has it whether
	// its condition held or not. Of a restore that was refused because the mesh holds data it is the number of its keys; of
	// one that is being dropped, 1 as long as not all is gone.
	Current kv.Revision
	// Members are the outcomes of a transaction's members, by position. The transaction's own Revision is the last that they
	// took. When its Code is not empty, nothing was changed: the members with a Code say why, the others would have passed.
	Members []OpResult
}

// Result is the outcome of one batch, the same on every voter.
type Result struct {
	Epoch    kv.Epoch
	MeshTime int64       // after the batch, unix milliseconds
	Revision kv.Revision // of the state after the batch
	Ops      []OpResult
}
