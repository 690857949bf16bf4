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

func (r *run) statusCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "status",
		Usage: "show the mesh as a node sees it",
		Description: "W is the revision up to which a node has applied every change; F is how long ago that was last proven " +
			"to be the newest state.",
		Flags: clientFlags(),
		Action: r.action(0, "no arguments", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
			st, err := cl.Cluster(c.Context)
			switch {
			case err != nil:
				return err
			case asJSON:
				return r.printJSON(st)
			}
			return r.printf("%s", statusText(st))
		}),
	}
}

// statusText is the mesh for people: its members by region, voters first.
func statusText(st *api.ClusterStatus) string {
	members := slices.Clone(st.Members)
	slices.SortFunc(members, func(a, b api.MemberStatus) int {
		return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(roleOrder(a.Role), roleOrder(b.Role)),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	t := newTable()
	t.AppendHeader(table.Row{
		"REGION", "ROLE", "NAME", "ID", "STATE", "HTTP", "RTT", "W", "F", "ENTRIES", "CACHED", "UP", "VERSION",
	})
	leader := "none known"
	var notes strings.Builder
	for _, m := range members {
		if m.ID == st.Leader {
			leader = printable(m.Name) + " in " + printable(m.Region)
		}
		t.AppendRow(memberRow(m, m.ID == st.Self))
		if m.Error != "" {
			notes.WriteString("  " + printable(m.Name) + " (" + printable(m.Region) + "): " + printable(m.Error) + "\n")
		}
	}
	if leader == "none known" && st.Leader != "" {
		leader = st.Leader
	}
	var b strings.Builder
	b.WriteString("cluster    " + st.Cluster + "\nepoch      " + st.Epoch + "\nleader     " + leader +
		"\nrevision   " + strconv.FormatUint(uint64(st.Revision), 10) +
		"\nmesh time  " + st.MeshTime.UTC().Format(time.RFC3339) + "\n\n" + t.Render() + "\n")
	if notes.Len() > 0 {
		b.WriteString("\nnot answering:\n" + notes.String())
	}
	return b.String()
}

func memberRow(m api.MemberStatus, self bool) table.Row {
	state := m.State
	if m.Raft != "" {
		state += ", " + m.Raft
	}
	name := printable(m.Name)
	if self {
		name += " (this)"
	}
	row := table.Row{printable(m.Region), m.Role, name, m.ID[:min(8, len(m.ID))], state, m.HTTP, rtt(m, self)}
	if m.Error != "" {
		return append(row, "?", "?", "?", "?", "?", printable(m.Version))
	}
	f := "unproven"
	if m.FAgeMs >= 0 {
		f = humanDuration(time.Duration(m.FAgeMs)*time.Millisecond) + " ago"
	}
	return append(row, strconv.FormatUint(m.W, 10), f, strconv.FormatInt(m.Entries, 10), humanBytes(m.Bytes),
		humanDuration(time.Duration(m.UptimeMs)*time.Millisecond), printable(m.Version))
}

func rtt(m api.MemberStatus, self bool) string {
	if self || m.RTTMs < 0 {
		return "-"
	}
	return strconv.FormatFloat(m.RTTMs, 'f', 1, 64) + " ms"
}

func roleOrder(role string) int { return slices.Index([]string{"voter", "learner", "edge"}, role) }
