package config

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// Key is the setting's name, or the unknown key.
	Key string
	// Origin is where the value came from; shown unless it is the default.
	Origin Origin
	// Message says what is wrong.
	Message string
	// Remedy says what to do about it.
	Remedy string
}

func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.Key)
	if p.Origin.Source != FromDefault {
		fmt.Fprintf(&b, " (%s)", p.Origin)
	}
	b.WriteString(": " + p.Message)
	if p.Remedy != "" {
		b.WriteString("; " + p.Remedy)
	}
	return b.String()
}

// Problems is everything that is wrong, as one error.
type Problems []Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	if len(ps) == 1 {
		return "configuration: " + ps[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems in the configuration:", len(ps))
	for _, p := range ps {
		b.WriteString("\n  - " + p.String())
	}
	return b.String()
}

func (ps *Problems) add(key, remedy, format string, args ...any) {
	*ps = append(*ps, Problem{Key: key, Message: fmt.Sprintf(format, args...), Remedy: remedy})
}

// err is ps, or an untyped nil when there are none.
func (ps Problems) err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}
