package cli

import (
	ucli "github.com/urfave/cli/v2"

	"kvmesh/config"
)

// libraryFlag is what all flags of the library are.
type libraryFlag interface {
	ucli.DocGenerationFlag
	ucli.VisibleFlag
	ucli.CategorizableFlag
}

// settingFlag prints itself as the table of settings describes it. Everything else is the flag it wraps.
type settingFlag struct {
	libraryFlag
	text string
}

func (f settingFlag) String() string { return f.text }

func describeFlag(f libraryFlag, s config.Setting) ucli.Flag {
	name, def := "--"+s.Name, s.DefaultText
	if s.Kind != config.Bool {
		name += " " + s.Placeholder
		if s.Default != "" {
			def = s.Default
		}
	}
	text := name + "\t" + s.Usage
	if def != "" {
		text += " (default: " + def + ")"
	}
	return settingFlag{f, text + " [$" + s.Env() + "]"}
}

// settingFlags makes the flags of `serve` and `config show` from the table of settings.
func settingFlags() []ucli.Flag {
	flags := []ucli.Flag{&ucli.StringFlag{
		Name: "config", Usage: "YAML `FILE` with settings; flags and environment are stronger [$KVMESH_CONFIG]",
	}}
	for _, s := range config.Settings() {
		var f libraryFlag
		switch s.Kind {
		case config.Bool:
			f = &ucli.BoolFlag{Name: s.Name}
		case config.List:
			f = &ucli.StringSliceFlag{Name: s.Name}
		default:
			f = &ucli.StringFlag{Name: s.Name}
		}
		flags = append(flags, describeFlag(f, s))
	}
	return flags
}

// loadConfig reads all sources of settings.
func (r *run) loadConfig(c *ucli.Context) (*config.Loaded, error) {
	file := c.String("config")
	if !c.IsSet("config") {
		file, _ = r.Env(config.EnvPrefix + "CONFIG")
	}
	kinds := map[string]config.Kind{}
	for _, s := range config.Settings() {
		kinds[s.Name] = s.Kind
	}
	return config.Load(config.Sources{
		File: file, Env: r.Env, Machine: r.Machine,
		Flag: func(name string) ([]string, bool) {
			if !c.IsSet(name) {
				return nil, false
			}
			switch kinds[name] {
			case config.Bool:
				if c.Bool(name) {
					return []string{"true"}, true
				}
				return []string{"false"}, true
			case config.List:
				return c.StringSlice(name), true
			}
			return []string{c.String(name)}, true
		},
	})
}
