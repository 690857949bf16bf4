package cli

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
)

// manifestVersion is the version of the manifest's format.
const manifestVersion = 1

// manifestEntry says of one exported file what the file itself cannot.
type manifestEntry struct {
	// File is the path below the directory, with slashes.
	File string `json:"file"`
	// Key is the whole key; nil when it is File.
	Key        *string         `json:"key,omitempty"`
	Metadata   json.RawMessage `json:"metadata,omitempty"`
	Expiration int64           `json:"expiration,omitempty"` // unix seconds, 0 = never
}

// key of the entry.
func (e manifestEntry) key() string {
	if e.Key != nil {
		return *e.Key
	}
	return e.File
}

// plain says that the file says it all.
func (e manifestEntry) plain() bool { return e.Key == nil && e.Metadata == nil && e.Expiration == 0 }

type manifest struct {
	Version   int             `json:"version"`
	Namespace string          `json:"namespace"`
	Entries   []manifestEntry `json:"entries"`
}

// writeManifest writes the entries in the order of their files, one a line, so that two exports can be compared.
func writeManifest(root *os.Root, namespace string, entries []manifestEntry) error {
	slices.SortFunc(entries, func(a, b manifestEntry) int { return cmp.Compare(a.File, b.File) })
	temp := path.Join(exportDir, manifestName)
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	title, err := json.Marshal(namespace)
	if err == nil {
		_, err = fmt.Fprintf(w, "{\"version\":%d,\"namespace\":%s,\"entries\":[\n", manifestVersion, title)
	}
	for i, e := range entries {
		if err != nil {
			break
		}
		if i > 0 {
			err = w.WriteByte(',')
		}
		err = errors.Join(err, enc.Encode(e))
	}
	if err == nil {
		_, err = w.WriteString("]}\n")
	}
	if err = errors.Join(err, w.Flush(), f.Sync(), f.Close()); err != nil {
		return err
	}
	return root.Rename(temp, manifestName)
}

// readManifest reads the entries by file. A directory without a manifest has none.
func readManifest(root *os.Root) (map[string]manifestEntry, error) {
	f, err := root.Open(manifestName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	var m manifest
	dec := json.NewDecoder(bufio.NewReader(f))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", manifestName, err)
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("%s is of version %d; this program knows %d", manifestName, m.Version, manifestVersion)
	}
	byFile := make(map[string]manifestEntry, len(m.Entries))
	for _, e := range m.Entries {
		if _, twice := byFile[e.File]; twice {
			return nil, fmt.Errorf("%s is damaged: it lists %q twice", manifestName, e.File)
		}
		if string(e.Metadata) == "null" { // encoding/json keeps a null that is written out
			e.Metadata = nil
		}
		byFile[e.File] = e
	}
	return byFile, nil
}
