package cli

import (
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) clusterTransfer() *ucli.Command {
	return &ucli.Command{
		Name:      "transfer-leader",
		Usage:     "hand the leadership to another voter, by default to the one that is furthest ahead",
		ArgsUsage: "[NODE]",
		Flags:     clientFlags(),
		Action: func(c *ucli.Context) error {
			if c.NArg() > 1 {
				return exactly(c, 1, "at most one NODE")
			}
			return r.action(c.NArg(), "at most one NODE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
				ref := c.Args().First()
				done, err := cl.TransferLeader(c.Context, ref)
				if ref == "" {
					ref = "transfer-leader"
				}
				return r.memberChanged("transfer-leader", ref, done, err, asJSON)
			})(c)
		},
	}
}
