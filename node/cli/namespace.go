package cli

import (
	"fmt"
	"strconv"

	"github.com/jedib0t/go-pretty/v6/table"
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) namespaceCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "namespace",
		Usage: "make, list, rename and delete namespaces",
		Subcommands: []*ucli.Command{
			{
				Name: "create", Usage: "make a namespace", ArgsUsage: "TITLE", Flags: clientFlags(retryUnknownFlag()),
				Action: r.action(1, "TITLE", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
					ns, err := cl.CreateNamespace(c.Context, c.Args().First())
					return r.namespaceResult("create", c.Args().First(), ns, err, asJSON)
				}),
			},
			{
				Name: "list", Usage: "list all namespaces", Flags: clientFlags(),
				Action: r.action(0, "no arguments", r.namespaceList),
			},
			{
				Name: "rename", Usage: "give a namespace another title; its id and its keys stay", ArgsUsage: "TITLE|ID NEW-TITLE",
				Flags: clientFlags(retryUnknownFlag()),
				Action: r.action(2, "TITLE or ID, and NEW-TITLE,", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
					ns, err := cl.RenameNamespace(c.Context, c.Args().Get(0), c.Args().Get(1))
					return r.namespaceResult("rename", c.Args().Get(0), ns, err, asJSON)
				}),
			},
			{
				Name: "delete", Usage: "delete a namespace and everything in it", ArgsUsage: "TITLE|ID",
				Flags: clientFlags(retryUnknownFlag()),
				Action: r.action(1, "TITLE or ID", func(c *ucli.Context, cl *client.Client, asJSON bool) error {
					ref := c.Args().First()
					if err := cl.DeleteNamespace(c.Context, ref); err != nil {
						return fmt.Errorf("delete namespace %s: %w", printable(ref), err)
					}
					if asJSON {
						return r.printJSON(map[string]string{"deleted": ref})
					}
					return r.printf("delete namespace %s: done\n", printable(ref))
				}),
			},
		},
	}
}

func (r *run) namespaceResult(verb, ref string, ns client.Namespace, err error, asJSON bool) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s namespace %s: %w", verb, printable(ref), err)
	case asJSON:
		return r.printJSON(ns)
	}
	return r.printf("%s namespace %s: id %s, title %s\n", verb, printable(ref), ns.ID, printable(ns.Title))
}

func (r *run) namespaceList(c *ucli.Context, cl *client.Client, asJSON bool) error {
	all, err := cl.Namespaces(c.Context)
	if err != nil {
		return err
	}
	if asJSON {
		return r.printJSON(map[string][]client.Namespace{"namespaces": append([]client.Namespace{}, all...)})
	}
	t := newTable()
	t.AppendHeader(table.Row{"TITLE", "ID", "KEYS", "SIZE"})
	for _, ns := range all {
		keys, size := "-", "-"
		if ns.Keys != nil && ns.Bytes != nil {
			keys, size = strconv.FormatInt(*ns.Keys, 10), humanBytes(*ns.Bytes)
		}
		t.AppendRow(table.Row{printable(ns.Title), ns.ID, keys, size})
	}
	return r.printf("%s\n", t.Render())
}
