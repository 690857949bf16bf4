package api

import (
	"context"
	"io"
	"iter"

	"kvmesh/raftstore/kv"
)

// Writer is the part of Service that carries out many writes at once: what bulk calls and transactions of all surfaces are
// made of.
type Writer interface {
	// Stage reads one value to its end and seals it for a key. Nothing is written yet; one that is too large for a log entry
	// is on the disks of a quorum of the voters afterwards, and is swept when no write names it. It fails with
	// CodeValueTooLarge as soon as more than kv.MaxValueBytes have come, and with what the body fails with.
	Stage(ctx context.Context, req StageRequest) (Staged, error)
	// WriteEach carries out writes, each for itself, and tells the outcome of each to the function that comes with it:
	// exactly once, from any goroutine, before WriteEach returns. Writes of one key are carried out in their order; others
	// overtake each other. It takes the next write when there is room for it, so that writes may be made while they arrive.
	// After a failure that the next write would meet as well (no leader, no quorum, a full disk) the rest fails with it
	// untried. An error says that no write was taken at all (CodeOverloaded).
	WriteEach(ctx context.Context, writes iter.Seq2[Write, func(WriteResult, error)]) error
	// Txn carries out all writes or none. That a comparison does not hold is no error: TxnResult.Conflicts is set.
	Txn(ctx context.Context, req TxnRequest) (*TxnResult, error)
}

// StageRequest is a value on its way in.
type StageRequest struct {
	Namespace kv.Namespace
	Key       string
	Body      io.Reader
	Size      int64 // as in PutRequest
	// Forget says that the value is not to be kept in plaintext for this node's cache until it is written: for callers that
	// stage many before they write any.
	Forget bool
}

// Staged is a value that has been read and sealed for one key. It is good for one write of that key.
type Staged interface {
	// Size is the number of the value's bytes.
	Size() int64
}

// Write is one write of a bulk call or of a transaction.
type Write struct {
	Namespace kv.Namespace
	Key       string
	// Value is what Stage made for this key; nil removes the key.
	Value    Staged
	Metadata []byte // compact JSON, nil = none
	Expiry   int64  // unix seconds of mesh time, 0 = never
	Cond     Cond   // of a bulk write; a transaction has its conditions in Compare
}

// TxnRequest is a transaction: at most kv.MaxBatchOps comparisons and writes together, whose operations fit into one log
// entry of kv.MaxBatchBytes (CodeTooLarge). Conditions are judged by the state before it; writes are carried out in order.
type TxnRequest struct {
	Compare []TxnCompare
	Writes  []Write
}

// TxnCompare demands something of a key.
type TxnCompare struct {
	Namespace kv.Namespace
	Key       string
	Cond      Cond
}

// TxnResult is the outcome of a transaction.
type TxnResult struct {
	Epoch    kv.Epoch
	Revision kv.Revision // the last one that the transaction took; 0 when it changed nothing
	AsOf     kv.Revision // the bookmark
	// Writes are by position in the request. Empty when there are Conflicts.
	Writes []WriteResult
	// Conflicts are the comparisons that do not hold. Nothing was written if there are any.
	Conflicts []TxnConflict
}

// TxnConflict is a comparison that does not hold.
type TxnConflict struct {
	Index    int         // in TxnRequest.Compare
	Revision kv.Revision // of the key's present state, 0 = the key does not exist
}
