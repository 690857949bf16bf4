package config

import (
	"fmt"
	"os"
	"strings"
)

// Row is one setting as `kvmesh config show` prints it.
type Row struct {
	Name, YAML string
	Value      string
	Origin     Origin
}

// redacted replaces the value of a secret setting that does not name a file.
const redacted = "(redacted: no such file)"

// Rows lists every setting with its value and origin. A setting that names a secret's file shows the name only when the
// file exists: otherwise it may be the secret itself.
func (l *Loaded) Rows() []Row {
	var rows []Row
	for _, s := range Settings() {
		r := Row{Name: s.Name, YAML: s.YAML, Value: s.Value(&l.Config), Origin: l.Origin(s.Name)}
		if s.Secret && r.Value != "" {
			if _, err := os.Stat(r.Value); err != nil {
				r.Value = redacted
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// Reference is the table of all settings, in Markdown.
func Reference() string {
	var b strings.Builder
	b.WriteString("| flag | environment | file | default | meaning |\n|---|---|---|---|---|\n")
	for _, s := range Settings() {
		def := s.DefaultText
		if s.Default != "" {
			def = "`" + s.Default + "`"
		}
		flag := "--" + s.Name
		if s.Kind != Bool {
			flag += " " + s.Placeholder
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | `%s` | %s | %s |\n", strings.ReplaceAll(flag, "|", `\|`), s.Env(), s.YAML, def, s.Usage)
	}
	return b.String()
}
