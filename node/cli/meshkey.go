package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/certs"
)

func (r *run) meshKeyCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "mesh-key",
		Usage: "make the key that the nodes of a mesh share",
		Subcommands: []*ucli.Command{{
			Name:  "new",
			Usage: "print a new key; every node of the mesh needs the same one",
			Description: "Whoever has the key is a member of the mesh and can read and write everything in it. Typical use:\n\n" +
				"   (umask 077; kvmesh mesh-key new > mesh.key)",
			Flags: []ucli.Flag{&ucli.StringFlag{
				Name: "out", Usage: "write to a new `FILE` that only its owner can read, instead of standard output",
			}},
			Action: func(c *ucli.Context) error {
				if err := exactly(c, 0, "no arguments"); err != nil {
					return err
				}
				text := certs.NewMeshKey().Encode() + "\n"
				if path := c.String("out"); path != "" {
					return writeNewFile(path, text)
				}
				return r.printf("%s", text)
			},
		}},
	}
}

// writeNewFile never replaces a file: an overwritten mesh key cannot be had back.
func writeNewFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already and is not overwritten; choose another name", path)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}
