package cli

import (
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) clusterJoin() *ucli.Command {
	return &ucli.Command{
		Name:      "join",
		Usage:     "take a node back that was removed; with --voter, give a learner a vote",
		ArgsUsage: "NODE",
		Description: "New voters and learners join by themselves when they are started. This is for a node that was removed and is started\n" +
			"again with its data directory, and for a learner that is to become a voter. NODE is a name, an id, or the beginning of one.",
		Flags: clientFlags(&ucli.BoolFlag{Name: "voter", Usage: "give a learner its vote; waits until it has caught up", DisableDefaultText: true}),
		Action: r.action(1, "NODE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			ref := c.Args().First()
			done, err := cl.Join(c.Context, ref, c.Bool("voter"))
			return r.memberChanged("join "+printable(ref), ref, done, err, asJSON)
		}),
	}
}
