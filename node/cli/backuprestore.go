package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/seal"
)

func (r *run) backupRestoreCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "restore",
		Usage:     "replace everything that a mesh holds by a backup",
		ArgsUsage: "FILE",
		Description: "All of it, or nothing: readers see the old content until the whole backup is on a majority of the voters, and a " +
			"new epoch begins then. The mesh may have any number of voters, and may be another one than made the backup. The file " +
			"is checked before anything is sent. Without --yes the command only says what it would do.",
		Flags: clientFlags(
			&ucli.BoolFlag{Name: "yes", DisableDefaultText: true, Usage: "do it"},
			&ucli.BoolFlag{Name: "replace", DisableDefaultText: true, Usage: "even if the mesh holds data, which are gone then"},
			meshKeyFlag("source-mesh-key", "`FILE` with the mesh key of the mesh that made the backup, if this one has another"),
		),
		Action: r.action(1, "FILE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			rs := &restoring{r: r, cl: cl, file: c.Args().First(), replace: c.Bool("replace")}
			if path := c.String("source-mesh-key"); path != "" {
				var err error
				if rs.source, err = r.readKEK("source-mesh-key", path); err != nil {
					return err
				}
			}
			if err := rs.prepare(c.Context); err != nil {
				return err
			}
			if !c.Bool("yes") {
				return usagef("this would replace everything in mesh %s at %s by revision %d of mesh %s, made %s; say --yes to do it",
					rs.cluster, cl.URL(), rs.sum.Revision, rs.sum.Cluster, time.UnixMilli(rs.sum.Created).UTC().Format(time.RFC3339))
			}
			return rs.run(c.Context, asJSON)
		}),
	}
}

// restoring is one restore.
type restoring struct {
	r       *run
	cl      *client.Client
	file    string
	replace bool
	source  *seal.KEK // of the mesh that made the backup; nil = the same as the target's

	size    int64
	sum     backup.Summary
	cluster string // the target
	address []byte // what it must be sealed for; nil = it is already
}

// prepare checks the file, and that the mesh can open it, before anything is sent.
func (rs *restoring) prepare(ctx context.Context) error {
	f, size, err := openBackup(rs.file)
	if err != nil {
		return err
	}
	rs.size = size
	prog := streamProgress(rs.r.Err, "check", size)
	rs.sum, err = backup.Check(prog.reading(f))
	prog.stop()
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: nothing was restored: %w", rs.file, withRemedy(err))
	}
	st, err := rs.cl.Cluster(ctx)
	if err != nil {
		return err
	}
	rs.cluster = st.Cluster
	key, address, err := rs.cl.BackupAddress(ctx)
	switch {
	case err != nil:
		return err
	case key == rs.sum.Key:
		return nil
	case rs.source == nil:
		return fmt.Errorf("%s is sealed for another key: %s, and the mesh at %s has %s; give the mesh key of the mesh that made it with --source-mesh-key FILE",
			rs.file, rs.sum.Key, rs.cl.URL(), key)
	case rs.source.String() != rs.sum.Key:
		return fmt.Errorf("%s is sealed for the key %s, and --source-mesh-key is the key %s; give the mesh key of the mesh that made it",
			rs.file, rs.sum.Key, rs.source)
	}
	rs.address = address
	return nil
}

func (rs *restoring) run(ctx context.Context, asJSON bool) error {
	prog := streamProgress(rs.r.Err, "restore", rs.size)
	body := &restoreBody{rs: rs, prog: prog}
	start := time.Now()
	res, err := rs.cl.RestoreBackup(ctx, client.Body{Size: -1, Open: body.open}, rs.replace)
	prog.stop()
	var unknown *client.UnknownOutcomeError
	if errors.As(err, &unknown) && !body.whole.Load() {
		// A node that has not read the end cannot have carried it out.
		return fmt.Errorf("the connection to %s broke during the upload, and nothing was restored: %w", unknown.URL, unknown.Err)
	}
	if err != nil {
		return err
	}
	if asJSON {
		return rs.r.printJSON(res)
	}
	return rs.r.printf("restore: %d keys in %d namespaces, %s, of revision %d (%.1f s)\nThe mesh is in epoch %s now, at revision %d.\n",
		res.Keys, res.Namespaces, humanBytes(int64(res.Bytes)), res.From, time.Since(start).Seconds(), res.Epoch, res.Revision)
}

// restoreBody gives the bytes of the backup, sealed for the target.
type restoreBody struct {
	rs    *restoring
	prog  *progress
	whole atomic.Bool // the end was read
}

func (b *restoreBody) open() (io.ReadCloser, error) {
	f, err := os.Open(b.rs.file)
	if err != nil {
		return nil, err
	}
	b.prog.doneBytes.Store(0)
	b.whole.Store(false)
	src := b.prog.reading(f)
	if b.rs.address != nil {
		if src, err = backup.Readdress(src, b.rs.source, b.rs.address); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return &restoreFile{src, f, b}, nil
}

type restoreFile struct {
	src  io.Reader
	f    *os.File
	body *restoreBody
}

func (f *restoreFile) Read(p []byte) (int, error) {
	n, err := f.src.Read(p)
	if err == io.EOF {
		f.body.whole.Store(true)
	}
	return n, err
}

func (f *restoreFile) Close() error { return f.f.Close() }
