package node

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// identity is a node's data directory: who the node is, which mesh it belongs to, and the lock that keeps a second
// process out.
//
//	lock       flock'ed while the process runs
//	node-id    the UUID of the node, made at the first start
//	cluster    the cluster id, once the node has joined a mesh, and its CRC-32C: with another id it would find nobody
//	key-check  the node id again, sealed by the mesh key's KEK: a start with another key is refused before it does harm, and
//	           so is one under an id that the directory was not made with, because a bit of it has flipped for example
//	member     written once a voter or learner is a member of the central store
//	peers      gossip addresses of the other members, for a start with no seed alive
//	control    an edge's sealed copy of the control state
type identity struct {
	dir     string
	nodeID  string
	cluster kv.ClusterID
	member  atomic.Bool // this node is or was a member of the central store
	lock    *os.File
}

// keyCheckText begins what is sealed in key-check; the node id follows.
const keyCheckText = "kvmesh node 1 "

// openIdentity opens or makes the data directory at dir.
func openIdentity(dir string, kek *seal.KEK) (*identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	id := &identity{dir: dir, lock: lock}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("data directory %s is in use by another kvmesh process; stop that one, or give this one its own --data-dir", dir)
	}
	if err := id.load(kek); err != nil {
		_ = lock.Close()
		return nil, err
	}
	return id, nil
}

func (id *identity) load(kek *seal.KEK) error {
	if err := id.loadNodeID(kek); err != nil {
		return err
	}
	text, err := id.read("cluster")
	switch {
	case err == nil:
		if id.cluster, err = parseClusterFile(text); err != nil {
			return fmt.Errorf("%s: %w; restore it from a copy, or move the whole data directory aside and start again: it joins as a new node",
				filepath.Join(id.dir, "cluster"), err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	switch _, err = id.read("member"); {
	case err == nil:
		id.member.Store(true)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	return nil
}

// loadNodeID reads the node's id, or makes one for a new directory.
func (id *identity) loadNodeID(kek *seal.KEK) error {
	made, err := id.sealedNodeID(kek)
	if err != nil {
		return err
	}
	path := filepath.Join(id.dir, "node-id")
	text, err := id.read("node-id")
	missing := errors.Is(err, os.ErrNotExist)
	switch {
	case err != nil && !missing:
		return err
	case made == "" && missing:
		if err := id.checkNew(); err != nil {
			return err
		}
		text = uuid.NewString()
		if err := id.write("node-id", []byte(text+"\n")); err != nil {
			return err
		}
	case missing:
		return fmt.Errorf("%s is missing; write %s into it, or empty the data directory to join as a new node", path, made)
	case made != "" && text != made:
		return fmt.Errorf("%s holds %q, but this directory belongs to node %s: the file is damaged, or of another node. Write %s into it, "+
			"or empty the data directory to join as a new node", path, text, made, made)
	}
	if _, err := uuid.Parse(text); err != nil {
		return fmt.Errorf("%s does not hold a node id (%w); restore it from a copy, or empty the data directory to join as a new node", path, err)
	}
	id.nodeID = text
	if made != "" {
		return nil
	}
	sealed, err := kek.Seal("key-check", []byte(keyCheckText+text))
	if err != nil {
		return err
	}
	return id.write("key-check", sealed)
}

// checkNew refuses to give a new identity to a directory that has had one: what lies in it belongs to the old one.
func (id *identity) checkNew() error {
	for _, name := range []string{"cluster", "member", "store", "blobs", "control"} {
		switch _, err := os.Lstat(filepath.Join(id.dir, name)); {
		case err == nil:
			return fmt.Errorf("%s: the node's identity (node-id and key-check) is missing, but there is data of a node (%s): restore both files "+
				"from a copy, or move the whole data directory aside and start again: it joins as a new node", id.dir, name)
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	return nil
}

// setMember remembers for ever that this node has been a member of the central store: others count on what it has
// acknowledged under this id.
func (id *identity) setMember() error {
	if id.member.Load() {
		return nil
	}
	if err := id.write("member", []byte("1\n")); err != nil {
		return err
	}
	id.member.Store(true)
	return nil
}

// checkMember refuses a node that has been a member and has lost its log: under its old id it would vote and acknowledge
// as if it had never promised anything.
func (id *identity) checkMember(bootstrapped bool) error {
	if bootstrapped || !id.member.Load() {
		return nil
	}
	return fmt.Errorf("%s: this node was a member of the central store, and what it stored is gone; under its old id it would forget what it "+
		"has promised. Move the whole data directory aside (not a part of it) and start again: it joins as a new node, and takes the old one's place",
		id.dir)
}

// sealedNodeID is the id that the directory was made with; "" while it is new.
func (id *identity) sealedNodeID(kek *seal.KEK) (string, error) {
	path := filepath.Join(id.dir, "key-check")
	sealed, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	text, err := kek.Open("key-check", sealed)
	if err != nil {
		return "", fmt.Errorf("the data directory %s was written under another mesh key, or %s is damaged (%w); start with that key's --mesh-key file, "+
			"or give this mesh an empty --data-dir", id.dir, path, err)
	}
	made, ok := strings.CutPrefix(string(text), keyCheckText)
	if !ok {
		return "", fmt.Errorf("%s is of another version of kvmesh; give this node an empty --data-dir", path)
	}
	return made, nil
}

// setCluster remembers the mesh that the node belongs to. Another one than before is an error: the data directory of one
// mesh never serves in another.
func (id *identity) setCluster(c kv.ClusterID) error {
	if id.cluster == c {
		return nil
	}
	if !id.cluster.IsZero() {
		return fmt.Errorf("the data directory %s belongs to mesh %s, but the nodes found by --join are of mesh %s; correct --join, or give this mesh an empty --data-dir",
			id.dir, id.cluster, c)
	}
	if err := id.write("cluster", []byte(clusterFile(c))); err != nil {
		return err
	}
	id.cluster = c
	return nil
}

// clusterFile is what the file cluster holds.
func clusterFile(c kv.ClusterID) string {
	return fmt.Sprintf("%s %08x\n", c, crc32.Checksum([]byte(c.String()), crc32.MakeTable(crc32.Castagnoli)))
}

// parseClusterFile is the inverse of clusterFile, without the white space around it.
func parseClusterFile(text string) (kv.ClusterID, error) {
	hexed, _, _ := strings.Cut(text, " ")
	c, err := kv.ParseClusterID(hexed)
	if err != nil || text != strings.TrimSpace(clusterFile(c)) {
		return kv.ClusterID{}, fmt.Errorf("the file is damaged, it holds %q", text)
	}
	return c, nil
}

func (id *identity) read(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(id.dir, name))
	return strings.TrimSpace(string(b)), err
}

// write replaces a small file so that a crash leaves the old or the new one.
func (id *identity) write(name string, data []byte) error {
	return writeFileSync(filepath.Join(id.dir, name), data)
}

func writeFileSync(path string, data []byte) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (id *identity) close() error { return id.lock.Close() }
