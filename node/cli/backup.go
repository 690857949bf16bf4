package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/backup"
)

func (r *run) backupCommand() *ucli.Command {
	return &ucli.Command{
		Name:        "backup",
		Usage:       "save a whole mesh to one file, check such a file, restore it",
		Subcommands: []*ucli.Command{r.backupSaveCommand(), r.backupInspectCommand(), r.backupVerifyCommand(), r.backupRestoreCommand()},
	}
}

func (r *run) backupSaveCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "save",
		Usage:     "write everything that the mesh holds, as of one moment, to a new file",
		ArgsUsage: "FILE",
		Description: "The mesh goes on meanwhile. Any node will do. The backup holds everything acknowledged before the command, is " +
			"encrypted, and can be restored with the mesh key only: keep that as safe as the backup, and elsewhere. FILE appears " +
			"when all of it is on disk.",
		Flags: clientFlags(
			&ucli.BoolFlag{Name: "force", DisableDefaultText: true, Usage: "replace FILE if it exists"},
			&ucli.BoolFlag{
				Name: "allow-stale", DisableDefaultText: true,
				Usage: "take what a voter has, without a leader's word that nothing newer was acknowledged: for a mesh without a quorum",
			},
		),
		Action: r.action(1, "FILE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			file := c.Args().First()
			if _, err := os.Lstat(file); err == nil && !c.Bool("force") {
				return fmt.Errorf("%s exists already; choose another name, or replace it with --force", file)
			}
			start := time.Now()
			sum, size, err := r.saveBackup(c, cl, file)
			if err != nil {
				return err
			}
			return r.showSaved(file, sum, size, time.Since(start), asJSON)
		}),
	}
}

// saveBackup streams a backup into a temporary file beside the one wanted, looking at every checksum, and gives it its name
// when it is whole and on disk.
func (r *run) saveBackup(c *ucli.Context, cl *client.Client, file string) (sum backup.Summary, size int64, err error) {
	bk, err := cl.SaveBackup(c.Context, c.Bool("allow-stale"))
	if err != nil {
		return sum, 0, err
	}
	defer func() { _ = bk.Body.Close() }() // it was read to its end, or failed
	tmp := file + ".partial-" + strings.ToLower(rand.Text()[:8])
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return sum, 0, err
	}
	prog := streamProgress(r.Err, "backup", bk.Estimate)
	sum, err = backup.Check(io.TeeReader(prog.reading(bk.Body), f))
	prog.stop()
	size = prog.doneBytes.Load()
	if errors.Is(err, backup.ErrCut) {
		err = fmt.Errorf("the node gave up after %s; its log says why: %w", humanBytes(size), err)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		return sum, 0, errors.Join(fmt.Errorf("no backup was made: %w", err), os.Remove(tmp))
	}
	return sum, size, syncParent(file)
}

// syncParent makes the name of a file survive a power failure.
func syncParent(file string) error {
	d, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// backupDoc shows a backup to programs.
type backupDoc struct {
	File     string    `json:"file"`
	Size     int64     `json:"size"`
	ID       string    `json:"id"`
	Cluster  string    `json:"cluster"`
	Epoch    string    `json:"epoch"`
	Revision uint64    `json:"revision"`
	MeshTime time.Time `json:"mesh_time"`
	Created  time.Time `json:"created"`
	Version  string    `json:"version"`
	Key      string    `json:"key"`
	Parts    uint64    `json:"parts"`
	// Whole says that the file has its end. inspect looks at nothing else.
	Whole bool `json:"whole"`
	// Checked says that every checksum fits, Proven that every part was opened with the key as well.
	Checked bool `json:"checked"`
	Proven  bool `json:"proven"`
	// Holds is what is in it, when it was opened.
	Holds *holdsDoc `json:"holds,omitempty"`
}

type holdsDoc struct {
	Namespaces  uint64 `json:"namespaces"`
	Keys        uint64 `json:"keys"`
	Bytes       uint64 `json:"bytes"`
	LargeValues uint64 `json:"large_values"`
}

func newBackupDoc(file string, size int64, s backup.Summary) backupDoc {
	return backupDoc{
		File: file, Size: size, ID: fmt.Sprintf("%x", s.ID), Cluster: s.Cluster.String(), Epoch: s.Epoch.String(),
		Revision: uint64(s.Revision), MeshTime: time.UnixMilli(s.MeshTime).UTC(), Created: time.UnixMilli(s.Created).UTC(),
		Version: s.Version, Key: s.Key, Parts: s.Parts,
	}
}

// text shows a backup to people.
func (d backupDoc) text() string {
	state := "CUT SHORT: the end is missing"
	switch {
	case d.Proven:
		state = "whole, and proven to be what was saved"
	case d.Checked:
		state = "whole, every checksum fits; to prove that nobody has changed it, verify it with --mesh-key"
	case d.Whole:
		state = "it has an end; what is before it was not looked at: see kvmesh backup verify"
	}
	var b strings.Builder
	for _, line := range [][2]string{
		{"file", printable(d.File) + ", " + humanBytes(d.Size)},
		{"made", d.Created.Format(time.RFC3339) + " by kvmesh " + printable(d.Version)},
		{"mesh", d.Cluster},
		{"epoch", d.Epoch},
		{"revision", fmt.Sprint(d.Revision)},
		{"mesh time", d.MeshTime.Format(time.RFC3339)},
		{"key", d.Key},
		{"parts", fmt.Sprint(d.Parts)},
		{"state", state},
	} {
		fmt.Fprintf(&b, "%-10s %s\n", line[0], line[1])
	}
	if h := d.Holds; h != nil {
		fmt.Fprintf(&b, "%-10s %d keys in %d namespaces, %s; %d large values\n", "holds", h.Keys, h.Namespaces, humanBytes(int64(h.Bytes)), h.LargeValues)
	}
	return b.String()
}

func (r *run) showSaved(file string, sum backup.Summary, size int64, took time.Duration, asJSON bool) error {
	d := newBackupDoc(file, size, sum)
	d.Whole, d.Checked = true, true
	if asJSON {
		return r.printJSON(d)
	}
	return r.printf("backup: revision %d of mesh %s, %s in %d parts to %s (%.1f s, %s/s)\n", d.Revision, d.Cluster, humanBytes(size),
		d.Parts, printable(file), took.Seconds(), humanBytes(int64(float64(size)/max(took.Seconds(), 1e-9))))
}

// openBackup opens a backup file.
func openBackup(file string) (*os.File, int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: file, Err: errors.New("it is not a regular file")}
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}
