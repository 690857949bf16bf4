package config

import (
	"fmt"
)

// Source is a kind of place that values come from, weakest first.
type Source uint8

// The sources.
const (
	FromDefault Source = iota
	FromFile
	FromEnv
	FromFlag
)

// Origin is where one value came from.
type Origin struct {
	Source Source
	// Detail is the file and line, the environment variable or the flag; empty for a default.
	Detail string
}

func (o Origin) String() string {
	switch o.Source {
	case FromFile:
		return "file " + o.Detail
	case FromEnv:
		return "environment " + o.Detail
	case FromFlag:
		return "flag " + o.Detail
	default:
		return "default"
	}
}

// Sources is where Load looks. Every field may be left out.
type Sources struct {
	// Flag returns the values given to a flag, and whether it was given at all.
	Flag func(name string) (values []string, given bool)
	// Env looks an environment variable up, as os.LookupEnv does. A variable that is set to nothing counts as not set.
	Env func(name string) (string, bool)
	// File is the path of a YAML file.
	File string
	// Machine is what derived defaults depend on; nil asks the system.
	Machine *Machine
}

// Loaded is a configuration that remembers where its values came from.
type Loaded struct {
	Config  Config
	origins map[string]Origin // by setting name; a missing one is FromDefault
}

// Origin tells where the value of the setting came from.
func (l *Loaded) Origin(name string) Origin { return l.origins[name] }

// Load reads all sources: flag > environment > file > default. It reports everything it cannot read as one Problems
// error. The values are well-formed then, but not yet checked against each other: see Validate.
func Load(src Sources) (*Loaded, error) {
	l := &Loaded{Config: literals(), origins: map[string]Origin{}}
	var ps Problems
	inFile := map[string]fileValue{}
	if src.File != "" {
		inFile, ps = readFile(src.File)
	}
	settings := Settings()
	for _, s := range settings {
		values, origin := src.lookup(s, inFile)
		if origin.Source == FromDefault {
			continue
		}
		l.origins[s.Name] = origin
		if err := s.set(&l.Config, values); err != nil {
			p := Problem{Key: s.Name, Origin: origin, Message: err.Error()}
			if s.Secret {
				p.Message = "not a file name"
			}
			ps = append(ps, p)
		}
	}
	if len(ps) > 0 {
		return nil, ps
	}
	m := src.Machine
	for _, s := range settings {
		if s.derive == nil || l.Origin(s.Name).Source != FromDefault {
			continue
		}
		if m == nil {
			this := ThisMachine()
			m = &this
		}
		s.derive(&l.Config, *m)
	}
	return l, nil
}

// lookup finds the strongest source that has the setting.
func (src Sources) lookup(s Setting, inFile map[string]fileValue) ([]string, Origin) {
	if src.Flag != nil {
		if v, given := src.Flag(s.Name); given {
			return v, Origin{FromFlag, "--" + s.Name}
		}
	}
	if src.Env != nil {
		if v, _ := src.Env(s.Env()); v != "" {
			return []string{v}, Origin{FromEnv, s.Env()}
		}
	}
	if v, ok := inFile[s.Name]; ok {
		return v.values, Origin{FromFile, fmt.Sprintf("%s:%d", src.File, v.line)}
	}
	return nil, Origin{}
}

// Validate is Config.Validate, with the origin of each value that is at fault.
func (l *Loaded) Validate() error {
	ps := l.Config.problems()
	for i := range ps {
		ps[i].Origin = l.Origin(ps[i].Key)
	}
	return ps.err()
}
