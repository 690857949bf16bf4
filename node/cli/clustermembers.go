package cli

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/api"
	"kvmesh/node/cli/client"
)

func (r *run) clusterMembers() *ucli.Command {
	return &ucli.Command{
		Name:  "members",
		Usage: "list the voters and learners, as the leader sees them",
		Description: "VOTE is yes; pending, for a new voter that gets it once it has caught up and followed for a while; learner, for a\n" +
			"copy that does not vote; or none, for a node that is no member. BEHIND is how many log entries a node lacks, MISSING\n" +
			"how many large values it has to fetch yet, HEARD how long ago it answered the leader.",
		Flags: clientFlags(),
		Action: r.action(0, "no arguments", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			m, err := cl.Members(c.Context)
			switch {
			case err != nil:
				return err
			case asJSON:
				return r.printJSON(m)
			}
			return r.printf("%s", membersText(m))
		}),
	}
}

func membersText(m *api.Membership) string {
	rows := slices.Clone(m.Members)
	slices.SortFunc(rows, func(a, b api.MembershipRow) int {
		return cmp.Or(cmp.Compare(voteOrder(a.Vote), voteOrder(b.Vote)), cmp.Compare(a.Region, b.Region),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	t := newTable()
	t.AppendHeader(table.Row{"NAME", "REGION", "ROLE", "VOTE", "STATE", "BEHIND", "MISSING", "HEARD", "ID"})
	var notes strings.Builder
	for _, x := range rows {
		state, heard := x.State, "-"
		if x.ID == m.Leader {
			state += ", leader"
		} else if x.HeardMs >= 0 {
			heard = humanDuration(time.Duration(x.HeardMs)*time.Millisecond) + " ago"
		}
		name := printable(x.Name)
		if x.Name == "" {
			name = "?"
		}
		t.AppendRow(table.Row{
			name, printable(x.Region), x.Role, x.Vote, state, strconv.FormatUint(x.Behind, 10), strconv.Itoa(x.MissingBlobs), heard, x.ID,
		})
		if x.Note != "" {
			notes.WriteString("  " + name + ": " + printable(x.Note) + "\n")
		}
	}
	out := t.Render() + "\n"
	if m.Error != "" {
		out = printable(m.Error) + "\n\n" + out
	}
	if notes.Len() > 0 {
		out += "\n" + notes.String()
	}
	return out
}

func voteOrder(vote string) int {
	return slices.Index([]string{api.VoteYes, api.VotePending, api.VoteLearner, api.VoteNone}, vote)
}
