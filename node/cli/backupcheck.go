package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/certs"
	"kvmesh/raftstore/backup"
	"kvmesh/raftstore/seal"
)

func (r *run) backupInspectCommand() *ucli.Command {
	return &ucli.Command{
		Name:        "inspect",
		Usage:       "show what a backup file says of itself",
		ArgsUsage:   "FILE",
		Description: "Reads the beginning and the end, needs no key and no mesh, and proves nothing: see verify.",
		Flags:       []ucli.Flag{outputFlag()},
		Action: r.fileAction(func(_ *ucli.Context, file string, f *os.File, size int64) (backupDoc, error) {
			sum, err := backup.Inspect(f)
			if err != nil {
				return backupDoc{}, err
			}
			end := make([]byte, min(size, backup.EndBytes))
			if _, err := f.ReadAt(end, size-int64(len(end))); err != nil {
				return backupDoc{}, err
			}
			parts, _, err := backup.InspectEnd(end)
			d := newBackupDoc(file, size, sum)
			d.Parts, d.Whole = parts, err == nil
			return d, nil
		}),
	}
}

func meshKeyFlag(name, usage string) ucli.Flag { return &ucli.StringFlag{Name: name, Usage: usage} }

func (r *run) backupVerifyCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "verify",
		Usage:     "read a whole backup file and check every part of it",
		ArgsUsage: "FILE",
		Description: "Without a key the checksums are compared, which finds damage. With the mesh key every part is opened as well, " +
			"which proves that it is what was saved, and what it holds is counted. Needs no mesh.",
		Flags: []ucli.Flag{
			meshKeyFlag("mesh-key", "`FILE` with the mesh key of the mesh that made it [$KVMESH_MESH_KEY]"),
			outputFlag(),
		},
		Action: r.fileAction(func(c *ucli.Context, file string, f *os.File, size int64) (backupDoc, error) {
			var kek *seal.KEK
			if path := r.fromEnv(c, "mesh-key", "MESH_KEY"); path != "" {
				var err error
				if kek, err = r.readKEK("mesh-key", path); err != nil {
					return backupDoc{}, err
				}
			}
			prog := streamProgress(r.Err, "verify", size)
			defer prog.stop()
			if kek == nil {
				sum, err := backup.Check(prog.reading(f))
				d := newBackupDoc(file, size, sum)
				d.Whole, d.Checked = true, true
				return d, err
			}
			return proveBackup(file, size, prog.reading(f), kek)
		}),
	}
}

// proveBackup opens every part of a backup.
func proveBackup(file string, size int64, f io.Reader, kek *seal.KEK) (backupDoc, error) {
	br, err := backup.NewReader(f)
	if err != nil {
		return backupDoc{}, err
	}
	if err := br.Unlock(kek); err != nil {
		return backupDoc{}, err
	}
	for {
		rec, err := br.Next()
		if err == nil && rec.Kind == backup.KindNamespace {
			_, err = br.Rewrap(kek, &rec.Namespace) // shows that its data key is good
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return backupDoc{}, err
		}
	}
	d := newBackupDoc(file, size, br.Summary())
	d.Whole, d.Checked, d.Proven = true, true, true
	t := br.Totals()
	d.Holds = &holdsDoc{Namespaces: t.Namespaces, Keys: t.Keys, Bytes: t.Bytes, LargeValues: t.Blobs}
	return d, nil
}

// withRemedy says what can be done about a backup that is of no use.
func withRemedy(err error) error {
	switch {
	case errors.Is(err, backup.ErrCut), errors.Is(err, backup.ErrDamaged):
		return fmt.Errorf("%w; copy it again from where it was saved, or use another backup", err)
	case errors.Is(err, seal.ErrWrongKey):
		return fmt.Errorf("%w; give the mesh key of the mesh that made it", err)
	}
	return err
}

// readKEK makes the key-encryption key of the mesh key in a file.
func (r *run) readKEK(flag, path string) (*seal.KEK, error) {
	key, warning, err := certs.ReadMeshKeyFile(path)
	if err != nil {
		return nil, usagef("--%s: %v", flag, err)
	}
	if warning != "" {
		r.printErr("warning: " + warning)
	}
	return seal.NewKEK(key.KEK())
}

// fileAction wraps what inspect and verify do: it checks the arguments, opens the file and shows the result.
func (r *run) fileAction(do func(c *ucli.Context, file string, f *os.File, size int64) (backupDoc, error)) ucli.ActionFunc {
	return func(c *ucli.Context) error {
		if err := exactly(c, 1, "FILE"); err != nil {
			return err
		}
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		file := c.Args().First()
		f, size, err := openBackup(file)
		if err != nil {
			return err
		}
		d, err := do(c, file, f, size)
		if err = errors.Join(err, f.Close()); err != nil {
			var usage *usageError
			if errors.As(err, &usage) {
				return err
			}
			return fmt.Errorf("%s: %w", file, withRemedy(err))
		}
		if asJSON {
			return r.printJSON(d)
		}
		return r.printf("%s", d.text())
	}
}
