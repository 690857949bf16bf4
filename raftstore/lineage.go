package raftstore

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/kv"
)

// Keys in the StableStore: the lineage of the log, and an unfinished recovery.
var (
	lineageKey  = []byte("kvmesh/lineage")
	recoveryKey = []byte("kvmesh/recovery")
)

const (
	// The greeting on every Raft connection, before the library's first byte: version, lineage; and the answer to it:
	// version, verdict, lineage.
	helloVersion = 1
	helloBytes   = 1 + 24
	answerBytes  = 2 + 24
	helloOK      = 0
	helloRefused = 1
	// helloTimeout bounds the greeting on the side that was called; who calls has the deadline of the dial.
	helloTimeout = 10 * time.Second
)

// lineages keeps the logs of two lineages apart. Raft itself would not: a leader whose term is higher overwrites whatever
// log it meets, and a recovered survivor and the voters it was recovered without are each other's peers by name, mesh key
// and mesh. So every Raft connection begins with the lineages of both sides, and carries nothing unless they are the same. A
// node without a log takes over the lineage of whoever calls it first, durably and before the call goes on.
type lineages struct {
	stable raft.StableStore
	fresh  func() (bool, error) // there is no log yet
	// superseded is called when the other side has a greater lineage: this log has no future. May be called again.
	superseded func(error)

	mu  sync.Mutex // guards own, and is held over its fsync, which happens once in a node's life
	own kv.Lineage
}

func openLineages(stable raft.StableStore) (*lineages, error) {
	own, err := storedLineage(stable)
	return &lineages{stable: stable, own: own}, err
}

func storedLineage(stable raft.StableStore) (kv.Lineage, error) {
	b, err := stableBytes(stable, lineageKey)
	if err != nil || len(b) == 0 {
		return kv.Lineage{}, err
	}
	return kv.DecodeLineage(b)
}

// stableBytes is what stands under a key, nil when nothing does.
func stableBytes(stable raft.StableStore, key []byte) ([]byte, error) {
	b, err := stable.Get(key)
	if err != nil && err.Error() != errNotFound.Error() { // the library, too, knows that error by its text only
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return b, nil
}

// Lineage is the line that this node's log belongs to; zero while it has none.
func (s *Store) Lineage() kv.Lineage { return s.lineages.current() }

func (l *lineages) current() kv.Lineage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own
}

// set makes another lineage durable.
func (l *lineages) set(to kv.Lineage) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.setLocked(to)
}

func (l *lineages) setLocked(to kv.Lineage) error {
	if l.own == to {
		return nil
	}
	if err := l.stable.Set(lineageKey, kv.AppendLineage(nil, to)); err != nil {
		return fmt.Errorf("write the lineage: %w", err)
	}
	l.own = to
	return nil
}

// greet is the caller's side.
func (l *lineages) greet(c net.Conn, node string) error {
	own := l.current()
	if _, err := c.Write(kv.AppendLineage([]byte{helloVersion}, own)); err != nil {
		return err
	}
	var b [answerBytes]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	theirs, err := kv.DecodeLineage(b[2:])
	switch {
	case err != nil:
		return err
	case b[0] != helloVersion:
		return fmt.Errorf("node %s greets in version %d, this node knows %d", node, b[0], helloVersion)
	case b[1] == helloOK:
		return nil
	}
	return l.differ(own, theirs, node)
}

// answer is the side that was called.
func (l *lineages) answer(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return err
	}
	var b [helloBytes]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return err
	}
	theirs, err := kv.DecodeLineage(b[1:])
	if err == nil && b[0] != helloVersion {
		err = fmt.Errorf("the caller greets in version %d, this node knows %d", b[0], helloVersion)
	}
	if err != nil {
		return err
	}
	own, refused := l.admit(theirs)
	verdict := byte(helloOK)
	if refused != nil {
		verdict = helloRefused
	}
	if _, err := c.Write(kv.AppendLineage([]byte{helloVersion, verdict}, own)); err != nil {
		return errors.Join(refused, err)
	}
	if refused != nil {
		return refused
	}
	return c.SetDeadline(time.Time{})
}

// admit decides about a caller of the given lineage.
func (l *lineages) admit(theirs kv.Lineage) (own kv.Lineage, refused error) {
	l.mu.Lock()
	own = l.own
	if own == theirs || mutMixLineages {
		l.mu.Unlock()
		return own, nil
	}
	fresh, err := l.fresh()
	if err == nil && fresh && !theirs.IsZero() {
		err = l.setLocked(theirs)
		own = l.own
		l.mu.Unlock()
		return own, err
	}
	l.mu.Unlock()
	if err != nil {
		return own, err
	}
	return own, l.differ(own, theirs, "that called")
}

// differ is the error about two lineages that must not meet.
func (l *lineages) differ(own, theirs kv.Lineage, node string) error {
	if own.Compare(theirs) > 0 {
		return fmt.Errorf("node %s holds data of generation %v of the mesh, which was recovered without it as generation %v: "+
			"move its data directory aside and start it again as a new node", node, theirs, own)
	}
	err := Superseded(own, theirs)
	if fresh, ferr := l.fresh(); ferr != nil || fresh {
		return errors.Join(errors.New("this node has no log yet, and must be called first"), ferr)
	}
	l.superseded(err)
	return err
}

// Superseded is the error of a node whose log belongs to an older lineage than that of the mesh.
func Superseded(own, mesh kv.Lineage) error {
	return fmt.Errorf("this node's data is of generation %v of the mesh, and the mesh goes on as generation %v, recovered without this node: "+
		"what is here must not be used any more. Move the data directory aside and start the node again; it joins as a new one",
		own, mesh)
}
