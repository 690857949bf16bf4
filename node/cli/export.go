package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) exportCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "export",
		Usage:     "write a namespace to a directory tree",
		ArgsUsage: "DIR",
		Description: "The key is the path below DIR. Keys that a file system cannot hold get another name; those, metadata and " +
			"expirations are listed in " + manifestName + ", so that import restores all of it. DIR must be empty or missing.",
		Flags: transferFlags(
			&ucli.StringFlag{Name: "prefix", Usage: "only keys that begin with `TEXT`, which stays part of the path"},
		),
		Action: func(c *ucli.Context) error {
			cl, parallel, asJSON, err := r.transferSetup(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			root, err := openEmpty(c.Args().First())
			if err != nil {
				return err
			}
			ex := &exporter{client: cl, root: root, namespace: c.String("namespace"), prefix: c.String("prefix")}
			err = r.runTransfer(c, "export", asJSON, func(rep *report) transfer {
				ex.rep = rep
				return transfer{parallel: parallel, find: ex.find, move: ex.move}
			}, func() error { return writeManifest(root, ex.namespace, ex.entries) })
			return errors.Join(err, root.Close())
		},
	}
}

// openEmpty opens a directory, which is made if it is missing. One with something in it is refused: what is there would
// be imported again as if it had been exported.
func openEmpty(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	_, err = d.Readdirnames(1)
	switch closeErr := d.Close(); {
	case err == nil:
		return nil, fmt.Errorf("%s is not empty; name a new directory", dir)
	case !errors.Is(err, io.EOF):
		return nil, err
	case closeErr != nil:
		return nil, closeErr
	}
	return os.OpenRoot(dir)
}

// exporter is one export.
type exporter struct {
	client            *client.Client
	root              *os.Root
	namespace, prefix string
	rep               *report

	mu      sync.Mutex // guards entries
	entries []manifestEntry
}

// find lists the keys and gives each its file.
func (ex *exporter) find(ctx context.Context, emit func(item) error) error {
	var names fileNamer
	last := ""
	for page, err := range ex.client.Pages(ctx, ex.namespace, client.ListOptions{Prefix: ex.prefix}) {
		if err != nil {
			return err
		}
		for _, k := range page.Keys {
			if k.Name <= last { // the names of the files depend on it
				return fmt.Errorf("the node listed %q after %q, which is not in order", k.Name, last)
			}
			last = k.Name
			if err := emit(item{key: k.Name, file: names.path(k.Name), size: k.Size, revision: k.Revision}); err != nil {
				return err
			}
		}
	}
	return nil
}

// move reads one key into its file.
func (ex *exporter) move(ctx context.Context, it item) (int64, error) {
	obj, err := ex.get(ctx, it)
	if err != nil {
		return 0, err
	}
	n, err := ex.save(it.file, obj.Body)
	if err = errors.Join(err, obj.Body.Close()); err != nil {
		return 0, err
	}
	e := manifestEntry{File: it.file, Metadata: obj.Metadata, Expiration: obj.Expiration}
	if it.key != it.file {
		e.Key = &it.key
	}
	if e.Key != nil || e.Metadata != nil || e.Expiration != 0 {
		ex.mu.Lock()
		ex.entries = append(ex.entries, e)
		ex.mu.Unlock()
	}
	return n, nil
}

// get reads the key at the revision of the listing or a later one: a cache may not know yet what the listing, which
// comes from a voter, showed already.
func (ex *exporter) get(ctx context.Context, it item) (*client.Object, error) {
	obj, err := ex.client.Get(ctx, ex.namespace, it.key, client.GetOptions{})
	if err == nil && obj.Revision >= it.revision {
		return obj, nil
	}
	if err == nil {
		err = obj.Body.Close()
	}
	if err != nil && client.CodeOf(err) != kv.CodeKeyNotFound {
		return nil, err
	}
	obj, err = ex.client.Get(ctx, ex.namespace, it.key, client.GetOptions{CacheTTL: "0"})
	if client.CodeOf(err) == kv.CodeKeyNotFound {
		return nil, errSkipped // deleted or expired since it was listed
	}
	return obj, err
}

// save writes a new file. On failure nothing is left of it.
func (ex *exporter) save(file string, src io.Reader) (int64, error) {
	if dir := path.Dir(file); dir != "." {
		if err := ex.root.MkdirAll(dir, 0o755); err != nil {
			return 0, pathless(err)
		}
	}
	f, err := ex.root.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return 0, errors.New("the file is there already: does the file system take upper and lower case for the same?")
	}
	if err != nil {
		return 0, pathless(err)
	}
	n, err := io.Copy(f, src)
	if err = errors.Join(err, f.Close()); err != nil {
		return n, errors.Join(err, ex.root.Remove(file))
	}
	return n, nil
}
