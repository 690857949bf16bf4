package cli

import (
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) clusterRemove() *ucli.Command {
	return &ucli.Command{
		Name:      "remove",
		Usage:     "take a voter or learner out of the central store",
		ArgsUsage: "NODE",
		Description: "The node may be running, stopped or lost. It is refused when the voters that would remain and answer are no majority of\n" +
			"those that would remain. NODE is a name, an id, or the beginning of one, as \"kvmesh cluster members\" shows them.",
		Flags: clientFlags(),
		Action: r.action(1, "NODE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			ref := c.Args().First()
			done, err := cl.Remove(c.Context, ref)
			return r.memberChanged("remove "+printable(ref), ref, done, err, asJSON)
		}),
	}
}
