package api

import (
	"context"
	"io"
	"time"

	"kvmesh/raftstore/kv"
)

// Service is what the HTTP surfaces ask of a node. Every method may block until ctx ends, returns *kv.Error values for
// everything a client can be told, and is safe for concurrent use. Keys, titles and metadata reach it validated.
type Service interface {
	// Namespace resolves an id (32 hex digits) or a title; an id wins. CodeNamespaceNotFound when neither is known to the
	// mesh.
	Namespace(ctx context.Context, ref string) (kv.Namespace, error)
	// Namespaces lists them all, by title.
	Namespaces(ctx context.Context) ([]kv.Namespace, error)
	// NamespaceStats counts namespaces. One that is not known, or not any more, is left out.
	NamespaceStats(ctx context.Context, ids []kv.NamespaceID) (map[kv.NamespaceID]NamespaceStats, error)
	CreateNamespace(ctx context.Context, title string) (kv.Namespace, error)
	RenameNamespace(ctx context.Context, id kv.NamespaceID, title string) (kv.Namespace, error)
	DeleteNamespace(ctx context.Context, id kv.NamespaceID) error

	// Get reads one key. An absent key is no error: Value.Absent is set.
	Get(ctx context.Context, req GetRequest) (*Value, error)
	// Put writes one key. It reads req.Body to its end before anything commits, and fails with CodeValueTooLarge as soon
	// as more than kv.MaxValueBytes have come.
	Put(ctx context.Context, req PutRequest) (WriteResult, error)
	Delete(ctx context.Context, req DeleteRequest) (WriteResult, error)
	List(ctx context.Context, req ListRequest) (*ListPage, error)
	Writer

	// MeshTime is the present mesh time, by which every expiry is judged.
	MeshTime() time.Time
	// Cluster describes the mesh as this node sees it, as one JSON document.
	Cluster(ctx context.Context) (*ClusterStatus, error)
}

// NamespaceStats counts a namespace. Keys that have expired count until they are swept, which is about a second.
type NamespaceStats struct {
	Keys  int64
	Bytes int64 // of keys and values, without metadata
}

// GetRequest asks for one key.
type GetRequest struct {
	Namespace kv.Namespace
	Key       string
	// CacheTTL is the age up to which a cached answer will do.
	CacheTTL time.Duration
	// HeadOnly says that the body will not be read.
	HeadOnly    bool
	Consistency Consistency
	// Timing is told of TimingCache and TimingFill; nil = nobody asked.
	Timing *Timing
}

// Consistency is what a read demands beyond the default.
type Consistency struct {
	// Strong makes the read linearizable.
	Strong bool
	// Bookmark makes the answer at least that new. The zero value demands nothing. One of another epoch is read strongly,
	// one from the future is CodeInvalidParameter.
	Bookmark kv.Bookmark
	// MaxStaleness is how old the answer may be, by proof; CodeStaleBeyondLimit when that cannot be had. Only when Bounded.
	MaxStaleness time.Duration
	Bounded      bool
}

// Value is a key's state as a read found it. Bytes or Open gives the body: Bytes when it is in memory, else Open.
type Value struct {
	Absent   bool
	Epoch    kv.Epoch
	Revision kv.Revision // of the last write to the key, 0 if Absent
	AsOf     kv.Revision // the state is current at this revision; the bookmark of the answer
	Metadata []byte      // compact JSON, nil = none
	Expiry   int64       // unix seconds, 0 = never
	Size     int64

	Tier Tier
	// Staleness is the proven upper bound on how long ago this state was current; negative when nothing is known.
	Staleness time.Duration
	// StaleReason is set when an old entry is served because the mesh could not be asked.
	StaleReason string

	// Bytes is the whole value, shared and not to be changed. nil when Open is set.
	Bytes []byte
	// Open streams the value from offset. The caller closes what it returns.
	Open func(ctx context.Context, offset, length int64) (io.ReadCloser, error)
}

// Tier names who answered, as the header Kv-Cache shows it.
type Tier string

// The tiers, nearest first.
const (
	TierHit        Tier = "hit"
	TierStale      Tier = "stale"
	TierRegion     Tier = "region"
	TierPeerRegion Tier = "peer-region"
	TierCentral    Tier = "central"
	TierStore      Tier = "store"
)

// CondKind says what a conditional write demands.
type CondKind uint8

// The conditions.
const (
	CondNone     CondKind = iota
	CondAbsent            // If-None-Match: *
	CondPresent           // If-Match: *
	CondETag              // If-Match: "<etag>"
	CondRevision          // Revision, of the history that the mesh is in; EpochTag is not looked at
)

// Cond is the condition of a write.
type Cond struct {
	Kind     CondKind
	EpochTag [4]byte     // last four bytes of the epoch (CondETag)
	Revision kv.Revision // CondETag, CondRevision
}

// PutRequest writes one key.
type PutRequest struct {
	Namespace kv.Namespace
	Key       string
	Metadata  []byte // compact JSON, nil = none
	Expiry    int64  // unix seconds of mesh time, 0 = never
	Cond      Cond
	Body      io.Reader
	// Size is the number of bytes that Body will give, -1 when unknown. A body that gives more or fewer is
	// CodeInvalidBody.
	Size int64
	// Timing is told of TimingBody and TimingCommit; nil = nobody asked.
	Timing *Timing
}

// DeleteRequest removes one key. Deleting a missing key succeeds.
type DeleteRequest struct {
	Namespace kv.Namespace
	Key       string
	Cond      Cond
	// Timing is told of TimingCommit; nil = nobody asked.
	Timing *Timing
}

// WriteResult is the outcome of an acknowledged write.
type WriteResult struct {
	Epoch    kv.Epoch
	Revision kv.Revision // that the write took; 0 when it changed nothing
	AsOf     kv.Revision // the bookmark
	Expiry   int64
}

// ListRequest asks for one page of a listing, in the order of the keys' UTF-8 bytes.
type ListRequest struct {
	Namespace kv.Namespace
	Prefix    string
	// Delimiter groups the keys that share the part up to its next occurrence after Prefix; empty = no grouping.
	Delimiter string
	Limit     int    // 1..kv.MaxListLimit keys and groups together
	Cursor    string // as an earlier page returned it; empty = from the start. CodeInvalidCursor when it is of another query
	Values    bool
	// Consistency of the page; a listing is never older than what this node has shown before.
	Consistency Consistency
}

// ListPage is one page.
type ListPage struct {
	Keys     []ListKey
	Prefixes []string // the groups, when there is a delimiter
	Cursor   string   // empty when Complete
	Complete bool
	Epoch    kv.Epoch
	AsOf     kv.Revision
	// Staleness is the proven upper bound on how long ago this state was current; negative when nothing is known.
	Staleness time.Duration
}

// ListKey is one key of a page.
type ListKey struct {
	Name     string
	Revision kv.Revision
	Expiry   int64
	Metadata []byte // compact JSON, nil = none
	// Value is set when the request asked for values and this one has at most kv.MaxInlineValueBytes; a larger one is left
	// out (HasValue false) and has to be read by itself.
	Value    []byte
	HasValue bool
	Size     int64
}

// ClusterStatus describes the mesh as one node sees it.
type ClusterStatus struct {
	Cluster  string         `json:"cluster"`
	Epoch    string         `json:"epoch"`
	Revision kv.Revision    `json:"revision"` // the newest this node has heard of
	Leader   string         `json:"leader"`   // node id, empty when unknown
	MeshTime time.Time      `json:"mesh_time"`
	Self     string         `json:"self"`
	Members  []MemberStatus `json:"members"`
}

// MemberStatus is one node. The figures of another node are what it said when it was asked just now; Error says why they
// are missing.
type MemberStatus struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Role    string  `json:"role"` // voter, learner, edge
	Region  string  `json:"region"`
	State   string  `json:"state"` // alive, suspect, failed; of voters also leader, follower, candidate in Raft
	Raft    string  `json:"raft,omitempty"`
	HTTP    string  `json:"http"`
	Peer    string  `json:"peer"`
	Gossip  string  `json:"gossip"`
	RTTMs   float64 `json:"rtt_ms"` // -1 when not measured
	Version string  `json:"version"`
	W       uint64  `json:"w"`
	FAgeMs  int64   `json:"f_age_ms"` // how long ago F is; -1 when nothing is proven
	Entries int64   `json:"entries"`
	Bytes   int64   `json:"bytes"`
	Error   string  `json:"error,omitempty"`
	// Of a voter or learner: what it says about its place in the mesh when that is not as it should be, and how many large
	// values it has to fetch yet.
	Why          string `json:"why,omitempty"`
	MissingBlobs int    `json:"missing_blobs,omitempty"`
	UptimeMs     int64  `json:"uptime_ms"`
}
