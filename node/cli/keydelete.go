package cli

import (
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) keyDelete() *ucli.Command {
	return &ucli.Command{
		Name:      "delete",
		Usage:     "remove one key; one that does not exist is no error",
		ArgsUsage: "KEY",
		Flags: clientFlags(
			&ucli.StringFlag{Name: "if-match", Usage: "remove only if the key has this `ETAG`, or exists at all for *"},
			namespaceFlag(), retryUnknownFlag(),
		),
		Action: r.action(1, "KEY", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			key := c.Args().First()
			m, err := cl.Delete(c.Context, c.String("namespace"), key, quoteETag(c.String("if-match")))
			if err != nil {
				return fmt.Errorf("delete %s: %w", printable(key), err)
			}
			return r.written("delete", key, m, asJSON)
		}),
	}
}
