package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

const (
	// stateFile and entriesFile lie in exportDir: how far the export has come, and a line for each file that the manifest is
	// going to list.
	stateFile   = "state.json"
	entriesFile = "entries"
)

// exportDir writes a directory tree.
func (r *run) exportDir(c *ucli.Context) (err error) {
	cl, ns, j, err := r.transferSetup(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	dir := c.Args().First()
	j.verb, j.noun = "export", "files"
	j.keep = keeper{path: filepath.Join(dir, exportDir, stateFile), args: exportArgs(c, ns, formatDir)}
	root, err := openExport(dir, c.Bool("resume"), &j)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	ex := &exporter{
		source: source{client: cl, namespace: c.String("namespace"), prefix: c.String("prefix")},
		root:   root, before: j.before, entries: map[string]manifestEntry{},
	}
	if err := ex.openEntries(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ex.log.Close()) }()
	if j.before == nil { // from now on the directory is known as one that is not whole
		if err := j.keep.save(&state{}); err != nil {
			return err
		}
	}
	j.build = func(rep *report) transfer {
		ex.rep = rep
		return transfer{parallel: c.Int("parallel"), find: ex.find, move: ex.move}
	}
	j.finish = ex.finish
	return r.runTransfer(c, j)
}

// openExport opens the directory of an export, which is made if it is missing. One with something in it is refused unless it
// is gone on with: what is there would be imported again as if it had been exported.
func openExport(dir string, resume bool, j *job) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	if err := prepareExport(root, dir, resume, j); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return root, nil
}

func prepareExport(root *os.Root, dir string, resume bool, j *job) error {
	_, err := root.Lstat(exportDir)
	unfinished := err == nil
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case unfinished && !resume:
		return fmt.Errorf("%s holds an export that is not whole; go on with it by --resume, or name a new directory", dir)
	case unfinished:
		if j.before, err = j.keep.load(); err != nil {
			return err
		}
	}
	if j.before != nil {
		return onlyOneCase(root)
	}
	empty, err := isEmpty(root)
	if err == nil && !empty {
		err = fmt.Errorf("%s is not empty; name a new directory", dir)
	}
	if err != nil {
		return err
	}
	return root.MkdirAll(exportDir, 0o755)
}

// isEmpty says whether there is nothing in a directory, or nothing but an export that ended before it had begun.
func isEmpty(root *os.Root) (bool, error) {
	d, err := root.Open(".")
	if err != nil {
		return false, err
	}
	names, err := d.Readdirnames(2)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return len(names) == 0 || len(names) == 1 && names[0] == exportDir, errors.Join(err, d.Close())
}

// onlyOneCase refuses to go on where two keys could be one file: whether a file is that of an earlier run or of another key
// cannot be told there.
func onlyOneCase(root *os.Root) error {
	if _, err := root.Lstat(strings.ToUpper(exportDir)); err == nil {
		return errors.New("the file system takes upper and lower case for the same, so this export cannot be gone on with; name a new directory")
	}
	return nil
}

// exporter is one export to a directory.
type exporter struct {
	source
	root   *os.Root
	before *state
	rep    *report
	temps  atomic.Int64 // names of files that are being written
	log    *os.File     // entriesFile

	mu      sync.Mutex // guards entries
	entries map[string]manifestEntry
}

// openEntries reads the entries of an earlier run, up to a line that was not written to its end.
func (ex *exporter) openEntries() error {
	f, err := ex.root.OpenFile(path.Join(exportDir, entriesFile), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	in, whole := bufio.NewReader(f), int64(0)
	for {
		line, err := in.ReadBytes('\n')
		var e manifestEntry
		if err != nil || json.Unmarshal(line, &e) != nil {
			break
		}
		whole += int64(len(line))
		ex.entries[e.File] = e
	}
	if err := errors.Join(f.Truncate(whole), seekTo(f, whole)); err != nil {
		return errors.Join(err, f.Close())
	}
	ex.log = f
	return nil
}

func seekTo(f *os.File, at int64) error {
	_, err := f.Seek(at, io.SeekStart)
	return err
}

// find lists the keys and gives each its file.
func (ex *exporter) find(ctx context.Context, emit func(item) error) error {
	var names fileNamer
	var order ordered
	for page, err := range ex.client.Pages(ctx, ex.namespace, client.ListOptions{Prefix: ex.prefix}) {
		if err != nil {
			return err
		}
		for _, k := range page.Keys {
			if err := order.next(k.Name); err != nil {
				return err
			}
			it := listedItem(k)
			it.file = names.path(k.Name)
			due, again := ex.rep.led.due(k.Name, ex.before == nil || !ex.before.Begun || k.Name > string(ex.before.Mark))
			if !due && (mutListedOnly || ex.has(it)) {
				continue
			}
			it.again = again
			if err := ex.rep.begin(ctx, &it); err != nil {
				return err
			}
			if err := emit(it); err != nil {
				return err
			}
		}
	}
	return nil
}

// has says whether an earlier run has left the file of a key as the listing describes it.
func (ex *exporter) has(it item) bool {
	info, err := ex.root.Lstat(filepath.FromSlash(it.file))
	return err == nil && info.Mode().IsRegular() && info.Size() == it.size
}

// move reads one key into its file. The file has its name only when it is whole and its entry is written.
func (ex *exporter) move(ctx context.Context, it item) (int64, error) {
	obj, err := ex.get(ctx, it)
	if err != nil {
		return 0, err
	}
	temp, n, err := ex.save(obj.Body)
	if err = errors.Join(err, obj.Body.Close()); err != nil {
		return 0, err
	}
	e := manifestEntry{File: it.file, Metadata: it.metadataOf(obj), Expiration: obj.Expiration}
	if it.key != it.file {
		e.Key = &it.key
	}
	if err := ex.enter(e); err != nil {
		return 0, errors.Join(err, ex.root.Remove(temp))
	}
	return n, ex.place(temp, it.file)
}

// enter writes the entry of a file. One that says nothing is needed only where an earlier run has written another.
func (ex *exporter) enter(e manifestEntry) error {
	ex.mu.Lock()
	_, known := ex.entries[e.File]
	ex.mu.Unlock()
	if !known && e.plain() {
		return nil
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(mutEscapedCopies) // metadata stays as it is
	if err := enc.Encode(e); err != nil {
		return err
	}
	if _, err := ex.log.Write(line.Bytes()); err != nil { // an os.File writes one line after the other
		return err
	}
	ex.mu.Lock()
	ex.entries[e.File] = e
	ex.mu.Unlock()
	return nil
}

// save writes a value to a file of another name. On failure nothing is left of it.
func (ex *exporter) save(src io.Reader) (temp string, n int64, err error) {
	temp = path.Join(exportDir, "part-"+strconv.FormatInt(ex.temps.Add(1), 10))
	f, err := ex.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return "", 0, pathless(err)
	}
	n, err = io.Copy(f, src)
	if err = errors.Join(err, f.Close()); err != nil {
		return "", n, errors.Join(err, ex.root.Remove(temp))
	}
	return temp, n, nil
}

// place gives a file its name, which must be free, unless an earlier run may have taken it for the same key.
func (ex *exporter) place(temp, file string) error {
	if dir := path.Dir(file); dir != "." {
		if err := ex.root.MkdirAll(dir, 0o755); err != nil {
			return errors.Join(pathless(err), ex.root.Remove(temp))
		}
	}
	if err := ex.name(temp, file); err != nil {
		return errors.Join(pathless(err), ex.root.Remove(temp))
	}
	return nil
}

// name renames a file, to a name that must be free where nothing else can have taken it.
func (ex *exporter) name(temp, file string) error {
	if ex.before != nil {
		return ex.root.Rename(temp, file)
	}
	taken := errors.New("the file is there already: does the file system take upper and lower case for the same?")
	err := ex.root.Link(temp, file)
	if err == nil {
		return ex.root.Remove(temp)
	}
	if errors.Is(err, fs.ErrExist) {
		return taken
	}
	// Not every file system has links. Then the name is taken first, and the file replaced; a rename alone would not notice
	// another one.
	f, err := ex.root.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return taken
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return ex.root.Rename(temp, file)
}

// finish writes the manifest. What the export needed to go on is removed unless something failed.
func (ex *exporter) finish(whole bool) error {
	ex.mu.Lock()
	entries := slices.Collect(maps.Values(ex.entries))
	ex.mu.Unlock()
	entries = slices.DeleteFunc(entries, func(e manifestEntry) bool {
		if e.plain() {
			return true
		}
		if ex.before == nil {
			return false
		}
		_, err := ex.root.Lstat(filepath.FromSlash(e.File)) // an earlier run may have ended between the two
		return errors.Is(err, fs.ErrNotExist)
	})
	if err := writeManifest(ex.root, ex.namespace, entries); err != nil {
		return err
	}
	if !whole {
		return nil
	}
	return ex.root.RemoveAll(exportDir)
}
