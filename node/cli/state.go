package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

const (
	stateVersion = 1
	// maxStateBytes bounds a state file: maxWindow keys of the greatest length, and then some.
	maxStateBytes = 16 << 20
)

// state is what is kept of a transfer beside what it made, so that --resume can go on with it.
type state struct {
	Version int `json:"version"`
	// Args are what must be the same when it goes on.
	Args []stateArg `json:"args"`
	// Mark is that of the last item up to which all have been dealt with; Begun says that there is one. It is base64 in the
	// file, because names of files need not be UTF-8.
	Mark   []byte   `json:"mark"`
	Begun  bool     `json:"begun"`
	Failed [][]byte `json:"failed,omitempty"`
	// Ahead are items behind the mark that have been moved all the same.
	Ahead  [][]byte `json:"ahead,omitempty"`
	Totals totals   `json:"totals"`
	// Size is how many bytes of an unfinished file are whole.
	Size int64 `json:"size,omitempty"`
}

// stateArg is something that says which transfer it is, as a user would write it.
type stateArg struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// keeper keeps the state of one transfer in a file.
type keeper struct {
	path string // empty: the state is not kept
	args []stateArg
}

// load reads the state, which must be of the same transfer. nil: there is none.
func (k keeper) load() (*state, error) {
	st, err := readState(k.path)
	if st == nil || err != nil {
		return nil, err
	}
	alien := fmt.Errorf("%s belongs to something else; remove it to begin anew", k.path)
	if len(st.Args) != len(k.args) {
		return nil, alien
	}
	var differ []string
	for i, a := range k.args {
		if st.Args[i].Name != a.Name {
			return nil, alien
		}
		if was := st.Args[i].Value; was != a.Value {
			differ = append(differ, fmt.Sprintf("%s was %s and is %s now", a.Name, shownArg(was), shownArg(a.Value)))
		}
	}
	if len(differ) > 0 {
		return nil, fmt.Errorf("--resume: what was interrupted is not the same: %s; give what was given then, or remove %s to begin anew",
			strings.Join(differ, ", "), k.path)
	}
	return st, nil
}

func shownArg(v string) string {
	if v == "" {
		return "not given"
	}
	return printable(v)
}

func readState(path string) (*state, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxStateBytes) {
		err = fmt.Errorf("%s is no state file of kvmesh", path)
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var st state
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&st); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w); remove it to begin anew", path, err)
	}
	if st.Version != stateVersion {
		return nil, fmt.Errorf("%s is of version %d; this program knows %d", path, st.Version, stateVersion)
	}
	return &st, nil
}

// save replaces the file as a whole.
func (k keeper) save(st *state) error {
	st.Version, st.Args = stateVersion, k.args
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	temp := k.path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(temp, k.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// remove ends the state of a transfer that is whole.
func (k keeper) remove() error {
	if k.path == "" {
		return nil
	}
	if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// stateSuffix makes the name of an import's state out of that of its source.
const stateSuffix = ".kvmesh-import"
