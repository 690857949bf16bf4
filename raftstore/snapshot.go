package raftstore

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"

	"kvmesh/raftstore/state"
)

// Directories and files within a data directory, beside the log's and the state's.
const (
	stateDir     = "state"
	snapshotsDir = "snapshots" // one small file for each snapshot
	stagingDir   = "staging"   // checkpoints that are being received
	outgoingDir  = "outgoing"  // checkpoints that are being sent

	metaSuffix = ".json"
	tmpSuffix  = ".tmp"
	// installingFile is written before a received checkpoint replaces the state, and removed after its snapshot has been
	// recorded: it says what happened when the process ends between the two.
	installingFile = "installing" + metaSuffix
)

// keepSnapshots is how many snapshot files are kept: the newest, and the one that a replicator may just be opening.
const keepSnapshots = 2

// stagedPrefix marks the ids of received checkpoints that wait to be installed. The library opens a snapshot for two
// reasons, and the id tells them apart: to send it to a follower (snap-…), and to restore what it has just received.
const stagedPrefix = "staged-"

// snapshotStore is the library's store of snapshots. A snapshot is a small file that says where in the log it stands; its
// data is the state itself, from which a checkpoint is cut when a follower really needs one. That checkpoint usually
// stands further on than the snapshot does. This is harmless, because the state knows its own applied index and skips
// the entries that it holds already, while the log goes on after the snapshot's index, to which the membership belongs.
type snapshotStore struct {
	fs      vfs.FS
	dir     string
	stable  raft.StableStore
	cut     func(dir string) (state.Applied, error) // State.Checkpoint
	hold    func() (release func())                 // keeps what the state names while a checkpoint is on its way
	inspect func(dir string) (state.Applied, error) // state.Inspect
	wanted  func() error                            // nil when a member that can be reached needs a checkpoint
	sent    func()                                  // a checkpoint is no longer being sent
	noticed func(error)                             // an own checkpoint could not be cut, or is damaged
	stale   func(index uint64) error                // nil when the library can go on from a checkpoint at index

	mu      sync.Mutex      // guards all below; held for map operations only
	metas   []*snapshotMeta // newest first
	damaged []error         // files that cannot be believed; only while opening
	drop    []string        // their names
	staged  map[string]*stagedCheckpoint
	sending int
	cuts    int    // checkpoints that were cut
	seq     uint64 // names directories
}

// stagedCheckpoint is a received and verified checkpoint.
type stagedCheckpoint struct {
	meta    snapshotMeta
	dir     string
	applied state.Applied
}

// openSnapshots reads the snapshot files of dir and finishes or forgets an interrupted installation; applied is where the
// state stands, which has been opened before and has finished or forgotten its own part.
func openSnapshots(fs vfs.FS, dir string, stable raft.StableStore, applied state.Applied) (*snapshotStore, error) {
	s := &snapshotStore{fs: fs, dir: dir, stable: stable, staged: make(map[string]*stagedCheckpoint), stale: func(uint64) error { return nil }}
	for _, d := range []string{stagingDir, outgoingDir} { // left over
		if err := fs.RemoveAll(fs.PathJoin(dir, d)); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{snapshotsDir, stagingDir, outgoingDir} {
		if err := fs.MkdirAll(fs.PathJoin(dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	names, err := fs.List(s.metaDir())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		switch {
		case strings.HasSuffix(name, tmpSuffix):
			err = fs.Remove(fs.PathJoin(s.metaDir(), name))
		case name != installingFile && strings.HasSuffix(name, metaSuffix):
			var m *snapshotMeta
			switch m, err = readMeta(fs, s.metaDir(), name); {
			case err == nil:
				s.metas = append(s.metas, m)
			case errors.Is(err, errDamagedMeta): // another one may do
				s.damaged, s.drop, err = append(s.damaged, err), append(s.drop, name), nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	s.sort()
	if slices.Contains(names, installingFile) {
		if err := s.recoverInstall(applied); err != nil {
			return nil, fmt.Errorf("finish the installation of a checkpoint: %w", err)
		}
	}
	return s, syncDir(fs, dir) // log and state have been made before, when they are new
}

// dropDamaged removes damaged files, once it is known that the directory is whole without them.
func (s *snapshotStore) dropDamaged() error {
	var err error
	for _, name := range s.drop {
		err = errors.Join(err, s.fs.Remove(s.fs.PathJoin(s.metaDir(), name)))
	}
	s.damaged, s.drop = nil, nil
	return err
}

// recoverInstall decides by where the state stands: it was replaced if and only if it has reached the checkpoint's index.
func (s *snapshotStore) recoverInstall(applied state.Applied) error {
	m, err := readMeta(s.fs, s.metaDir(), installingFile)
	if err != nil {
		return err
	}
	if applied.Index >= m.Installed {
		if err := s.record(m); err != nil {
			return err
		}
	}
	return s.removeInstalling()
}

func (s *snapshotStore) removeInstalling() error {
	if err := s.fs.Remove(s.fs.PathJoin(s.metaDir(), installingFile)); err != nil {
		return err
	}
	return syncDir(s.fs, s.metaDir())
}

func (s *snapshotStore) metaDir() string { return s.fs.PathJoin(s.dir, snapshotsDir) }

// sort puts the newest first. The caller holds mu, or is alone.
func (s *snapshotStore) sort() {
	slices.SortFunc(s.metas, func(a, b *snapshotMeta) int {
		switch {
		case a.Index > b.Index, a.Index == b.Index && a.Term > b.Term:
			return -1
		case a.Index == b.Index && a.Term == b.Term:
			return 0
		default:
			return 1
		}
	})
}

// record makes a snapshot durable and known, and lets go of old ones. While the log has not caught up with an installed
// checkpoint, later snapshots go on saying how far that reached.
func (s *snapshotStore) record(m *snapshotMeta) error {
	if reached := s.installed(); reached > m.Index {
		m.Installed = max(m.Installed, reached)
	}
	if err := writeMeta(s.fs, s.metaDir(), m.ID+metaSuffix, m); err != nil {
		return err
	}
	// The log says, too, how far snapshots reach, before it is cut there: with the files lost it would look like a new one.
	if err := s.stable.SetUint64(snapshotKey, max(m.Index, s.newestIndex())); err != nil {
		return err
	}
	s.mu.Lock()
	s.metas = slices.DeleteFunc(s.metas, func(o *snapshotMeta) bool { return o.ID == m.ID })
	s.metas = append(s.metas, m)
	s.sort()
	var old []*snapshotMeta
	if len(s.metas) > keepSnapshots {
		old = slices.Clone(s.metas[keepSnapshots:])
		s.metas = slices.Delete(s.metas, keepSnapshots, len(s.metas))
	}
	s.mu.Unlock()
	var err error
	for _, o := range old {
		err = errors.Join(err, s.fs.Remove(s.fs.PathJoin(s.metaDir(), o.ID+metaSuffix)))
	}
	return err
}

func (s *snapshotStore) newestIndex() uint64 {
	if m := s.newest(); m != nil {
		return m.Index
	}
	return 0
}

// newest snapshot, nil when there is none.
func (s *snapshotStore) newest() *snapshotMeta {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.metas) == 0 {
		return nil
	}
	return s.metas[0]
}

// installed is the highest applied index of an installed checkpoint that is still on record.
func (s *snapshotStore) installed() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var index uint64
	for _, m := range s.metas {
		index = max(index, m.Installed)
	}
	return index
}

// transfers is how many checkpoints are being sent.
func (s *snapshotStore) transfers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sending
}

// checkpoints is how many were cut.
func (s *snapshotStore) checkpoints() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cuts
}

// Create begins a snapshot: of this node's own when Persist follows, of the leader's when its bytes follow.
func (s *snapshotStore) Create(
	_ raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	m, err := newSnapshotMeta(index, term, conf, confIndex)
	if err != nil {
		return nil, err
	}
	return &snapshotSink{store: s, meta: m}, nil
}

// List gives the snapshots, newest first.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*raft.SnapshotMeta
	for _, m := range s.metas {
		out = append(out, m.raft())
	}
	return out, nil
}

// Open cuts a checkpoint and streams it; of a received checkpoint it gives no more than its id, for Restore.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	staged := s.staged[id]
	at := slices.IndexFunc(s.metas, func(m *snapshotMeta) bool { return m.ID == id })
	var own *snapshotMeta
	if at >= 0 {
		own = s.metas[at]
	}
	s.mu.Unlock()
	switch {
	case staged != nil:
		meta := staged.meta.raft()
		meta.ID, meta.Size = id, int64(len(id))
		return meta, io.NopCloser(strings.NewReader(id)), nil
	case own != nil:
		// The library opens a snapshot before it dials, again and again while the follower is down.
		if err := s.wanted(); err != nil {
			return nil, nil, err
		}
		return s.send(own)
	default:
		return nil, nil, fmt.Errorf("there is no snapshot %s", id)
	}
}

// send cuts a checkpoint and streams it. It is read through before: damage must not travel, and who has it should know.
func (s *snapshotStore) send(m *snapshotMeta) (_ *raft.SnapshotMeta, _ io.ReadCloser, err error) {
	s.mu.Lock()
	s.cuts++
	s.sending++ // before the checkpoint is cut: the log must reach back to this snapshot for as long as it is on its way
	s.mu.Unlock()
	release := s.hold()
	dir := s.newDir(outgoingDir)
	done := func() error {
		release()
		s.mu.Lock()
		s.sending--
		s.mu.Unlock()
		s.sent()
		return s.fs.RemoveAll(dir)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("send a checkpoint: %w", err), done())
		}
	}()
	applied, err := s.cut(dir)
	if err != nil {
		return nil, nil, err
	}
	if applied.Index < m.Index {
		return nil, nil, fmt.Errorf("the state stands at entry %d, before the snapshot at %d", applied.Index, m.Index)
	}
	if _, err := s.inspect(dir); err != nil {
		s.noticed(err)
		return nil, nil, err
	}
	r, size, err := newArchiveReader(s.fs, dir, done)
	if err != nil {
		return nil, nil, err
	}
	meta := m.raft()
	meta.Size = size
	return meta, r, nil
}

func (s *snapshotStore) newDir(in string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	return s.fs.PathJoin(s.dir, in, fmt.Sprintf("%06d", s.seq))
}

// install puts a staged checkpoint in the state's place. The order of the steps makes each crash harmless: (1) the note of
// what is about to happen, (2) the state is replaced, atomically, (3) the snapshot is recorded, (4) the note goes. Before
// (2) the node starts as if nothing had come; after it recoverInstall does (3) and (4).
func (s *snapshotStore) install(id string, st *state.State) (state.Applied, error) {
	s.mu.Lock()
	c := s.staged[id]
	delete(s.staged, id)
	s.mu.Unlock()
	if c == nil {
		return state.Applied{}, fmt.Errorf("no staged checkpoint %q", id)
	}
	if err := s.stale(c.meta.Index); err != nil {
		return st.Applied(), errors.Join(err, s.fs.RemoveAll(c.dir))
	}
	now := st.Applied()
	if !now.Cluster.IsZero() && now.Cluster != c.applied.Cluster {
		return now, errors.Join(fmt.Errorf("the checkpoint is of mesh %s, this node belongs to %s", c.applied.Cluster, now.Cluster),
			s.fs.RemoveAll(c.dir))
	}
	m := c.meta
	m.Installed = max(c.applied.Index, now.Index)
	if now.Index >= c.applied.Index { // it holds all of that already
		return now, errors.Join(s.record(&m), s.fs.RemoveAll(c.dir))
	}
	if err := writeMeta(s.fs, s.metaDir(), installingFile, &m); err != nil {
		return now, errors.Join(err, s.fs.RemoveAll(c.dir))
	}
	if err := st.Replace(c.dir); err != nil {
		// Whether it was replaced is decided at the next start.
		return now, fmt.Errorf("replace the state by a checkpoint: %w", err)
	}
	if err := s.record(&m); err != nil {
		return now, err
	}
	return c.applied, s.removeInstalling()
}
