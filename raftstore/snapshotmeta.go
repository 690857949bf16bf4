package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// metaVersion is the version of the snapshot files.
const metaVersion = 1

// snapshotMeta is one snapshot's file: where in the log it stands and who was a member there. The data is the state
// itself, which stands there or further on.
type snapshotMeta struct {
	Version            int          `json:"version"`
	ID                 string       `json:"id"`
	Index              uint64       `json:"index"`
	Term               uint64       `json:"term"`
	Servers            []serverMeta `json:"servers"`
	ConfigurationIndex uint64       `json:"configuration_index"`
	// Installed is the applied index of the checkpoint that came with a snapshot of another node's; 0 for own snapshots.
	// It is usually beyond Index, and beyond the end of the log until that has caught up.
	Installed uint64 `json:"installed,omitempty"`
}

type serverMeta struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Suffrage string `json:"suffrage"`
}

var suffrages = map[string]raft.ServerSuffrage{"voter": raft.Voter, "nonvoter": raft.Nonvoter}

func newSnapshotMeta(index, term uint64, conf raft.Configuration, confIndex uint64) (snapshotMeta, error) {
	m := snapshotMeta{
		Version: metaVersion, ID: fmt.Sprintf("snap-%016x-%016x", index, term),
		Index: index, Term: term, ConfigurationIndex: confIndex,
	}
	for _, s := range conf.Servers {
		name := strings.ToLower(s.Suffrage.String())
		if _, ok := suffrages[name]; !ok {
			return m, fmt.Errorf("server %s has the suffrage %q", s.ID, name)
		}
		m.Servers = append(m.Servers, serverMeta{ID: string(s.ID), Address: string(s.Address), Suffrage: name})
	}
	return m, nil
}

// raft is the form that the library knows. Its Size is known only once a checkpoint is cut.
func (m *snapshotMeta) raft() *raft.SnapshotMeta {
	r := &raft.SnapshotMeta{
		Version: raft.SnapshotVersionMax, ID: m.ID, Index: m.Index, Term: m.Term, ConfigurationIndex: m.ConfigurationIndex,
	}
	for _, s := range m.Servers {
		r.Configuration.Servers = append(r.Configuration.Servers, raft.Server{
			ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address), Suffrage: suffrages[s.Suffrage],
		})
	}
	return r
}

// errDamagedMeta is a snapshot file that does not hold what was written to it.
var errDamagedMeta = errors.New("a damaged snapshot file")

// maxMetaBytes bounds what is read of a snapshot file; seven members take about 1 KiB.
const maxMetaBytes = 1 << 20

// A snapshot file is one line of JSON and one line with its checksum: a membership that has lost a bit must not be believed.
func writeMeta(fs vfs.FS, dir, name string, m *snapshotMeta) error {
	line, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp := fs.PathJoin(dir, name+tmpSuffix)
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(fmt.Appendf(nil, "%s\n%016x\n", line, xxhash.Sum64(line)))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, fs.Remove(tmp))
	}
	if err := fs.Rename(tmp, fs.PathJoin(dir, name)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func readMeta(fs vfs.FS, dir, name string) (_ *snapshotMeta, err error) {
	path := fs.PathJoin(dir, name)
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	text, err := io.ReadAll(io.LimitReader(f, maxMetaBytes))
	if err != nil {
		return nil, err
	}
	line, sum, _ := strings.Cut(strings.TrimSuffix(string(text), "\n"), "\n")
	if sum != fmt.Sprintf("%016x", xxhash.Sum64String(line)) {
		return nil, fmt.Errorf("%w: %s", errDamagedMeta, path)
	}
	m := new(snapshotMeta)
	if err := m.decode([]byte(line)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func (m *snapshotMeta) decode(line []byte) error {
	if err := json.Unmarshal(line, m); err != nil {
		return fmt.Errorf("%w: %w", errDamagedMeta, err)
	}
	if m.Version != metaVersion {
		return fmt.Errorf("it has version %d, this node knows %d: start the kvmesh that wrote it", m.Version, metaVersion)
	}
	for _, s := range m.Servers {
		if _, ok := suffrages[s.Suffrage]; !ok {
			return fmt.Errorf("server %s has the suffrage %q", s.ID, s.Suffrage)
		}
	}
	return nil
}
