package node

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"kvmesh/node/certs"
	"kvmesh/raftstore"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
	"kvmesh/raftstore/state"
)

// RecoverOptions name a stopped voter or learner. DataDir and MeshKey are required.
type RecoverOptions struct {
	DataDir string
	MeshKey certs.MeshKey
	Log     raftstore.LogStore // nil = the real one
	Logger  *slog.Logger       // nil = discard
}

// Survivor is what a stopped node's data directory holds, for a person who has to choose between several.
type Survivor struct {
	DataDir    string `json:"data_dir"`
	Node       string `json:"node"`
	Cluster    string `json:"cluster"`
	Generation uint64 `json:"generation"`
	// The end of its log. Of two survivors of one generation, the one with the later term, and in one term with the larger
	// index, has every acknowledged write that the other one has.
	LastTerm  uint64 `json:"last_term"`
	LastIndex uint64 `json:"last_index"`
	// Its state, with everything that its log holds.
	Revision     kv.Revision `json:"revision"`
	Epoch        string      `json:"epoch"`
	MeshTime     time.Time   `json:"mesh_time"` // of the newest entry
	Voters       []string    `json:"voters"`
	Learners     []string    `json:"learners"`
	Blobs        int         `json:"blobs"`         // large values that its state names
	MissingBlobs int         `json:"missing_blobs"` // those of them that its disk lacks
	Unfinished   bool        `json:"unfinished"`    // a recovery was begun here and interrupted
}

// Later orders survivors of one mesh: positive when s has more than o, 0 when both end at the same place.
func (s Survivor) Later(o Survivor) int {
	at := func(s Survivor) raftstore.Survivor {
		return raftstore.Survivor{Lineage: kv.Lineage{Generation: s.Generation}, LastTerm: s.LastTerm, LastIndex: s.LastIndex}
	}
	return at(s).Compare(at(o))
}

// Recovered is what a recovery has made.
type Recovered struct {
	Node     string      `json:"node"`
	Epoch    string      `json:"epoch"` // the new one
	Revision kv.Revision `json:"revision"`
	// Generation is that of the mesh from now on.
	Generation uint64 `json:"generation"`
}

// Survey reads what a stopped node holds. Nothing that counts is changed.
func Survey(opts RecoverOptions) (out Survivor, err error) {
	err = opts.with(func(store raftstore.RecoverOptions) error {
		sv, err := raftstore.Survey(store)
		out.fill(sv)
		return err
	}, &out)
	return out, err
}

// Recover makes a stopped node the only voter of its mesh, which goes on in a new epoch when it is started next. It is for
// a quorum that is lost for good; see raftstore.Recover.
func Recover(opts RecoverOptions) (out Recovered, err error) {
	var sv Survivor
	err = opts.with(func(store raftstore.RecoverOptions) error {
		rec, err := raftstore.Recover(store)
		out = Recovered{Node: sv.Node, Epoch: rec.Epoch.String(), Revision: rec.Revision, Generation: rec.Lineage.Generation}
		return err
	}, &sv)
	return out, err
}

// with opens the data directory, so that nobody else uses it meanwhile, and fills in what is known without the log.
func (o RecoverOptions) with(do func(raftstore.RecoverOptions) error, out *Survivor) (err error) {
	if _, err := os.Stat(filepath.Join(o.DataDir, "node-id")); err != nil {
		return fmt.Errorf("%s is no node's data directory (%w)", o.DataDir, err)
	}
	kek, err := seal.NewKEK(o.MeshKey.KEK())
	if err != nil {
		return err
	}
	id, err := openIdentity(o.DataDir, kek)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, id.close()) }()
	out.DataDir, out.Node, out.Cluster = o.DataDir, id.nodeID, id.cluster.String()
	return do(raftstore.RecoverOptions{
		Dir: filepath.Join(o.DataDir, "store"), NodeID: id.nodeID, LogStore: o.Log, KEK: kek, Logger: o.Logger,
		Look: func(st *state.State) error { return out.countBlobs(st, filepath.Join(o.DataDir, "blobs")) },
	})
}

func (s *Survivor) fill(sv raftstore.Survivor) {
	s.Generation = sv.Lineage.Generation
	s.LastTerm, s.LastIndex = sv.LastTerm, sv.LastIndex
	s.Revision, s.Epoch = sv.Applied.Revision, sv.Applied.Epoch.String()
	s.MeshTime = time.UnixMilli(sv.Applied.MeshTime).UTC()
	s.Voters, s.Learners, s.Unfinished = sv.Members.Voters, sv.Members.Learners, sv.Unfinished
}

// countBlobs finds the large values whose file is not on this disk.
func (s *Survivor) countBlobs(st *state.State, dir string) error {
	blobs, err := blob.Open(dir)
	if err != nil {
		return err
	}
	return st.EachBlob(func(ns kv.NamespaceID, id kv.BlobID, _ int64) error {
		has, err := blobs.Has(ns, id)
		s.Blobs++
		if !has {
			s.MissingBlobs++
		}
		return err
	})
}
