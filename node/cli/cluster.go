package cli

import (
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/api"
)

func (r *run) clusterCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "cluster",
		Usage: "show and change who belongs to the central store: its voters and learners",
		Subcommands: []*ucli.Command{
			r.clusterMembers(), r.clusterJoin(), r.clusterRemove(), r.clusterTransfer(), r.clusterRecover(),
		},
	}
}

// memberChanged reports a change.
func (r *run) memberChanged(verb, ref string, done *api.MembershipChange, err error, asJSON bool) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", verb, err)
	case asJSON:
		return r.printJSON(done)
	case done.Name != "" && done.Name != ref:
		ref = done.Name
	}
	return r.printf("%s: %s\n", printable(ref), done.Done)
}
