package cli

import (
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	ucli "github.com/urfave/cli/v2"

	"kvmesh/config"
)

func (r *run) configCommand() *ucli.Command {
	flags := append(settingFlags(),
		&ucli.BoolFlag{Name: "origin", Usage: "show where each value comes from", DisableDefaultText: true}, outputFlag())
	return &ucli.Command{
		Name:  "config",
		Usage: "show the settings of a node",
		Subcommands: []*ucli.Command{
			{
				Name:        "show",
				Usage:       "print every setting as serve would see it",
				Description: "Takes the flags of serve. What serve would refuse is listed on standard error.",
				Flags:       flags,
				Action:      r.configShow,
			},
			{
				Name:  "reference",
				Usage: "print a table of all settings, in Markdown",
				Action: func(c *ucli.Context) error {
					if err := exactly(c, 0, "no arguments"); err != nil {
						return err
					}
					return r.printf("%s", config.Reference())
				},
			},
		},
	}
}

func (r *run) configShow(c *ucli.Context) error {
	if err := exactly(c, 0, "no arguments"); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	l, err := r.loadConfig(c)
	if err != nil {
		return err
	}
	if asJSON {
		err = r.configJSON(l, c.Bool("origin"))
	} else {
		err = r.configTable(l, c.Bool("origin"))
	}
	if bad := l.Validate(); bad != nil {
		r.printErr("serve would refuse this: " + strings.TrimPrefix(bad.Error(), "configuration: "))
	}
	return err
}

func (r *run) configTable(l *config.Loaded, origin bool) error {
	t := newTable()
	header := table.Row{"SETTING", "VALUE"}
	if origin {
		header = append(header, "ORIGIN")
	}
	t.AppendHeader(header)
	for _, row := range l.Rows() {
		cells := table.Row{row.Name, printable(row.Value)}
		if origin {
			cells = append(cells, printable(row.Origin.String()))
		}
		t.AppendRow(cells)
	}
	return r.printf("%s\n", t.Render())
}

// configJSON prints a list and not an object, to keep the order of the table.
func (r *run) configJSON(l *config.Loaded, origin bool) error {
	type setting struct {
		Name   string `json:"name"`
		YAML   string `json:"yaml"`
		Value  string `json:"value"`
		Origin string `json:"origin,omitempty"`
	}
	var doc struct {
		Settings []setting `json:"settings"`
	}
	for _, row := range l.Rows() {
		s := setting{Name: row.Name, YAML: row.YAML, Value: row.Value}
		if origin {
			s.Origin = row.Origin.String()
		}
		doc.Settings = append(doc.Settings, s)
	}
	return r.printJSON(doc)
}
