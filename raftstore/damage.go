package raftstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"kvmesh/raftstore/state"
)

// Damage is the error of a data directory in which a file does not hold what was written to it. Nothing in the directory is
// believed any more until Rescue has replaced what is damaged by what another voter has; Open refuses it until then.
type Damage struct {
	Dir string
	// Log says that entries of the log are lost, not only the state, which is made from them: this voter must not vote
	// again before it has everything back that it may have acknowledged.
	Log bool
	Err error
}

func (d *Damage) Error() string {
	what := "the state"
	if d.Log {
		what = "the log"
	}
	return fmt.Sprintf("%s: %s is damaged: %v; it has to be copied from another voter, which `kvmesh serve` does at its start", d.Dir, what, d.Err)
}

func (d *Damage) Unwrap() error { return d.Err }

// damageFile marks a damaged directory. It is written before anybody is told, and removed when the repair is complete, so
// that neither a crash nor an impatient supervisor can start a voter on what is left.
const damageFile = "damaged.json"

// damageNote is the content of damageFile.
type damageNote struct {
	Version int    `json:"version"`
	Log     bool   `json:"log"`
	Error   string `json:"error"`
}

const damageVersion = 1

// note marks the directory. A directory that is marked already stays so: its log may be damaged beside its state.
func (d *Damage) note() error {
	old, err := readDamage(d.Dir)
	if err != nil {
		return err
	}
	n := damageNote{Version: damageVersion, Log: d.Log || old != nil && old.Log, Error: d.Err.Error()}
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(d.Dir, damageFile), append(b, '\n'))
}

// readDamage returns what the directory is marked with, nil for nothing. A mark that cannot be read means the worst.
func readDamage(dir string) (*Damage, error) {
	b, err := os.ReadFile(filepath.Join(dir, damageFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var n damageNote
	if err := json.Unmarshal(b, &n); err != nil || n.Version != damageVersion {
		n = damageNote{Log: true, Error: "and so is the note about it"}
	}
	return &Damage{Dir: dir, Log: n.Log, Err: errors.New(n.Error)}, nil
}

// damage marks the directory and returns the error for it.
func (s *Store) damage(log bool, err error) error {
	d := &Damage{Dir: s.opts.Dir, Log: log, Err: err}
	return errors.Join(error(d), d.note())
}

// Noticed tells the store of an error that somebody met who was reading from its state. It ends the node when the error
// says that a file is damaged.
func (s *Store) Noticed(err error) {
	if errors.Is(err, state.ErrDamaged) {
		s.noticed(&Damage{Dir: s.opts.Dir, Err: err})
	}
}

// noticed may be called from anywhere, and often. It does not block.
func (s *Store) noticed(d *Damage) {
	select {
	case s.damages <- d:
	default: // one is enough
	}
}

// watchDamage marks the directory and ends the node when damage is found while it runs. Nothing that is damaged was given
// to anybody: reading it is an error.
func (s *Store) watchDamage(done <-chan struct{}) {
	select {
	case d := <-s.damages:
		s.fatal(errors.Join(error(d), d.note()))
	case <-done:
	}
}

// entryDamaged says what the library is told of an entry that cannot be read. What a snapshot covers is not needed: whoever
// asks for it gets the snapshot.
func (s *Store) entryDamaged(index uint64, err error) error {
	if index <= s.snaps.newestIndex() {
		s.opts.Logger.Warn("a damaged entry of the log, which a snapshot covers", "index", index, "err", err)
		return raft.ErrLogNotFound
	}
	s.noticed(&Damage{Dir: s.opts.Dir, Log: true, Err: err})
	return err
}
