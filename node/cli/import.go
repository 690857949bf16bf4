package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) importCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "import",
		Usage:     "write every file of a directory tree to a namespace",
		ArgsUsage: "DIR",
		Description: "The path below DIR, with slashes, is the key. A manifest left by export gives the keys of files that could " +
			"not have their own name, metadata and expirations. Links and special files are refused. A file that fails does " +
			"not stop the others, but makes the exit code 1.",
		Flags: transferFlags(
			&ucli.StringFlag{Name: "prefix", Usage: "put `TEXT` before every key"},
			retryUnknownFlag(),
		),
		Action: func(c *ucli.Context) error {
			cl, parallel, asJSON, err := r.transferSetup(c)
			if err != nil {
				return err
			}
			defer cl.Close()
			root, err := os.OpenRoot(c.Args().First())
			if err != nil {
				return err
			}
			defer func() { _ = root.Close() }() // it was only read
			entries, err := readManifest(root)
			if err != nil {
				return err
			}
			im := &importer{
				client: cl, root: root, namespace: c.String("namespace"), prefix: c.String("prefix"), entries: entries,
				retryUnknown: c.Bool("retry-unknown"),
			}
			return r.runTransfer(c, "import", asJSON, func(rep *report) transfer {
				im.rep = rep
				return transfer{parallel: parallel, count: im.count, find: im.find, move: im.move, small: im.small, moveMany: im.moveMany}
			}, func() error { return nil })
		},
	}
}

// importer is one import.
type importer struct {
	client            *client.Client
	root              *os.Root
	namespace, prefix string
	entries           map[string]manifestEntry // of the manifest, by file; those found are taken out
	retryUnknown      bool                     // writes of which nobody knows whether they were carried out are repeated
	rep               *report
}

// find walks the tree. What cannot be imported is reported by name.
func (im *importer) find(ctx context.Context, emit func(item) error) error {
	err := fs.WalkDir(im.root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			if failed := im.rep.fail(file, pathless(err)); failed != nil {
				return failed
			}
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() || file == manifestName:
			return nil
		}
		it, err := im.item(file, d)
		if err != nil {
			return im.rep.fail(file, err)
		}
		return emit(it)
	})
	if err != nil {
		return err
	}
	for _, file := range slices.Sorted(maps.Keys(im.entries)) {
		if err := im.rep.fail(file, errors.New("is in the manifest, but not in the directory")); err != nil {
			return err
		}
	}
	return nil
}

// count walks the tree for the totals of the progress. What goes wrong here goes wrong in find too, which reports it.
func (im *importer) count(ctx context.Context, found func(int64)) {
	_ = fs.WalkDir(im.root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && d != nil && d.IsDir():
			return fs.SkipDir
		case err != nil || !d.Type().IsRegular() || file == manifestName:
			return nil
		}
		if info, err := d.Info(); err == nil {
			found(info.Size())
		}
		return nil
	})
}

// item is the file as it is to be imported.
func (im *importer) item(file string, d fs.DirEntry) (item, error) {
	e, listed := im.entries[file]
	delete(im.entries, file)
	if !listed {
		e = manifestEntry{File: file}
	}
	if kind := d.Type(); kind != 0 {
		what := "a special file"
		if kind&fs.ModeSymlink != 0 {
			what = "a symbolic link"
		}
		return item{}, fmt.Errorf("is %s, which no key can hold; leave it out, or copy what it stands for", what)
	}
	info, err := d.Info()
	if err != nil {
		return item{}, pathless(err)
	}
	it := item{key: im.prefix + e.key(), file: file, size: info.Size(), entry: e, info: info}
	return it, kv.ValidateKey(it.key)
}

// move writes one file.
func (im *importer) move(ctx context.Context, it item) (int64, error) {
	o := client.PutOptions{Metadata: it.entry.Metadata}
	if it.entry.Expiration != 0 {
		o.Expiration = strconv.FormatInt(it.entry.Expiration, 10)
	}
	body := client.Body{Size: it.size, Open: func() (io.ReadCloser, error) { return im.open(it) }}
	_, err := im.client.Put(ctx, im.namespace, it.key, body, o)
	if it.entry.Expiration != 0 && client.CodeOf(err) == kv.CodeInvalidExpiration {
		return 0, errSkipped // it has expired by mesh time, and does not exist any more
	}
	return it.size, err
}

// open opens the very file that the walk found: a link that has taken its place is not followed.
func (im *importer) open(it item) (io.ReadCloser, error) {
	f, err := im.root.Open(filepath.FromSlash(it.file))
	if err != nil {
		return nil, pathless(err)
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(info, it.info) {
		err = errors.New("was replaced while the import ran")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// pathless takes the path out of an error of the file system, where the path is printed anyway.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
