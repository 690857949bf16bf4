package config

import (
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// Kind is the shape of a setting's value.
type Kind uint8

// The kinds.
const (
	Text Kind = iota
	List      // several texts: separated by commas, or the flag repeated, or a YAML sequence
	Bool
)

// Setting describes one setting, for every place in which it can be given or shown.
type Setting struct {
	// Name is that of the flag, without dashes.
	Name string
	// YAML is the place in the file, with dots between the levels.
	YAML string
	Kind Kind
	// Placeholder stands for the value in help texts.
	Placeholder string
	// Default is the literal default; empty when there is none, or when it is derived.
	Default string
	// DefaultText describes a derived default, for people.
	DefaultText string
	Usage       string
	// Secret marks the name of a file that holds a secret. It is shown only when there is such a file: whoever gave the
	// secret itself instead must not find it in the output.
	Secret bool

	set    func(*Config, []string) error
	get    func(*Config) []string
	derive func(*Config, Machine) // the default, once every other setting is known
}

// EnvPrefix begins the name of every environment variable that kvmesh reads.
const EnvPrefix = "KVMESH_"

// Env is the setting's environment variable.
func (s Setting) Env() string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// Value is the setting's present value in c, as text that would set it again.
func (s Setting) Value(c *Config) string { return strings.Join(s.get(c), ",") }

// Settings is the table of all settings, in the order in which they are shown.
func Settings() []Setting {
	var all []Setting
	for _, group := range [][]Setting{nodeSettings(), listenSettings(), meshSettings(), otherSettings()} {
		all = append(all, group...)
	}
	return all
}

func nodeSettings() []Setting {
	return []Setting{
		text(Setting{
			Name: "name", YAML: "node.name", Placeholder: "NAME", DefaultText: "the host name",
			Usage:  "name of this node, for people",
			derive: func(c *Config, m Machine) { c.Node.Name = m.Hostname },
		}, func(c *Config) *string { return &c.Node.Name }),
		choice(Setting{
			Name: "role", YAML: "node.role", Default: string(RoleVoter),
			Usage: "what this node is: a voter of the central store, a learner (a copy that does not vote), or a caching edge",
		}, func(c *Config) *Role { return &c.Node.Role }, RoleVoter, RoleLearner, RoleEdge),
		text(Setting{
			Name: "region", YAML: "node.region", Placeholder: "NAME", Default: "default",
			Usage: "name of the place this node is in, for example eu-west; nodes of one region are close to each other",
		}, func(c *Config) *string { return &c.Node.Region }),
		text(Setting{
			Name: "data-dir", YAML: "node.data-dir", Placeholder: "DIR", Default: "kvmesh-data",
			Usage: "directory of everything this node keeps; made when it is missing",
		}, func(c *Config) *string { return &c.Node.DataDir }),
	}
}

func listenSettings() []Setting {
	return []Setting{
		text(Setting{
			Name: "http", YAML: "listen.http", Placeholder: "HOST:PORT", Default: "127.0.0.1:8580",
			Usage: "address of the public HTTP API",
		}, func(c *Config) *string { return &c.Listen.HTTP }),
		text(Setting{
			Name: "http-cert", YAML: "listen.http-cert", Placeholder: "FILE",
			Usage: "PEM file with the certificate of the public HTTP API and its chain: it speaks TLS, and HTTP/2 where clients can; " +
				"read again when it changes; needs --http-key",
		}, func(c *Config) *string { return &c.Listen.HTTPCert }),
		text(Setting{
			Name: "http-key", YAML: "listen.http-key", Placeholder: "FILE", Secret: true,
			Usage: "PEM file with the private key of --http-cert",
		}, func(c *Config) *string { return &c.Listen.HTTPKey }),
		text(Setting{
			Name: "peer", YAML: "listen.peer", Placeholder: "HOST:PORT", Default: "127.0.0.1:8581",
			Usage: "address for the other nodes (TLS, mutual authentication)",
		}, func(c *Config) *string { return &c.Listen.Peer }),
		text(Setting{
			Name: "gossip", YAML: "listen.gossip", Placeholder: "HOST:PORT", Default: "127.0.0.1:8582",
			Usage: "address of the membership protocol, UDP and TCP",
		}, func(c *Config) *string { return &c.Listen.Gossip }),
		text(Setting{
			Name: "admin", YAML: "listen.admin", Placeholder: "HOST:PORT", Default: "127.0.0.1:8583",
			Usage: "address of /livez, /readyz and /metrics",
		}, func(c *Config) *string { return &c.Listen.Admin }),
		text(Setting{
			Name: "advertise", YAML: "listen.advertise", Placeholder: "HOST", DefaultText: "the listeners' own hosts",
			Usage: "host that the others reach this node at; required when a listener is bound to all interfaces",
		}, func(c *Config) *string { return &c.Listen.Advertise }),
	}
}

func meshSettings() []Setting {
	return []Setting{
		list(Setting{
			Name: "join", YAML: "mesh.join", Placeholder: "HOST:PORT",
			Usage: "gossip addresses of nodes that are in the mesh or will be, with commas between them; may be repeated",
		}, func(c *Config) *[]string { return &c.Mesh.Join }),
		number(Setting{
			Name: "bootstrap-expect", YAML: "mesh.bootstrap-expect", Placeholder: "N",
			DefaultText: "1 for a voter without seeds, else 0",
			Usage:       "start a new mesh once this many voters have found each other; ignored once the node is part of one",
			derive: func(c *Config, _ Machine) {
				c.Mesh.BootstrapExpect = 0
				if c.Node.Role == RoleVoter && len(c.Mesh.Join) == 0 {
					c.Mesh.BootstrapExpect = 1
				}
			},
		}, func(c *Config) *int { return &c.Mesh.BootstrapExpect }),
		text(Setting{
			Name: "mesh-key", YAML: "mesh.key", Placeholder: "FILE", Secret: true,
			Usage: "file with the key that all nodes of the mesh share (made by: kvmesh mesh-key new); required",
		}, func(c *Config) *string { return &c.Mesh.KeyFile }),
		choice(Setting{
			Name: "profile", YAML: "mesh.profile", Default: string(ProfileLAN),
			Usage: "timeouts for voters close to each other (lan) or in several regions (wan)",
		}, func(c *Config) *Profile { return &c.Mesh.Profile }, ProfileLAN, ProfileWAN),
	}
}

func otherSettings() []Setting {
	return []Setting{
		text(Setting{
			Name: "api-token-file", YAML: "api.token-file", Placeholder: "FILE", Secret: true,
			Usage: "file with the bearer token that every HTTP request must carry",
		}, func(c *Config) *string { return &c.API.TokenFile }),
		flag(Setting{
			Name: "open-http", YAML: "api.open-http",
			Usage: "allow HTTP without a token on addresses that are not loopback: everybody who reaches the port may write",
		}, func(c *Config) *bool { return &c.API.OpenHTTP }),
		flag(Setting{
			Name: "strict-limits", YAML: "api.strict-limits",
			Usage: "refuse a second write of a key within one second with 429 on the two Cloudflare surfaces, as Workers KV does",
		}, func(c *Config) *bool { return &c.API.StrictLimits }),
		size(Setting{
			Name: "cache-size", YAML: "cache.size", Placeholder: "SIZE", DefaultText: "a quarter of the machine's memory",
			Usage:  "memory for cached values, for example 256MiB",
			derive: func(c *Config, m Machine) { c.Cache.Size = max(m.Memory/4/MiB*MiB, minCacheSize) },
		}, func(c *Config) *Size { return &c.Cache.Size }),
		level(Setting{
			Name: "log-level", YAML: "log.level", Default: "info", Placeholder: "LEVEL",
			Usage: "least level that is logged: debug, info, warn or error",
		}, func(c *Config) *slog.Level { return &c.Log.Level }),
		choice(Setting{
			Name: "log-format", YAML: "log.format", Default: string(LogText),
			Usage: "form of the log on standard error",
		}, func(c *Config) *LogFormat { return &c.Log.Format }, LogText, LogJSON),
	}
}

// text completes a setting whose value is one string.
func text(s Setting, field func(*Config) *string) Setting {
	s.set = func(c *Config, v []string) error { return one(v, func(t string) error { *field(c) = t; return nil }) }
	s.get = func(c *Config) []string { return []string{*field(c)} }
	return s
}

// choice completes a setting that takes one of a few words.
func choice[T ~string](s Setting, field func(*Config) *T, words ...T) Setting {
	names := make([]string, len(words))
	for i, w := range words {
		names[i] = string(w)
	}
	s.Placeholder = strings.Join(names, "|")
	s.set = func(c *Config, v []string) error {
		return one(v, func(t string) error {
			for _, w := range words {
				if t == string(w) {
					*field(c) = w
					return nil
				}
			}
			return fmt.Errorf("%q is not one of %s", t, strings.Join(names, ", "))
		})
	}
	s.get = func(c *Config) []string { return []string{string(*field(c))} }
	return s
}

// list completes a setting that takes several texts.
func list(s Setting, field func(*Config) *[]string) Setting {
	s.Kind = List
	s.set = func(c *Config, values []string) error {
		var out []string
		for _, v := range values {
			for part := range strings.SplitSeq(v, ",") {
				if part = strings.TrimSpace(part); part != "" {
					out = append(out, part)
				}
			}
		}
		*field(c) = out
		return nil
	}
	s.get = func(c *Config) []string { return *field(c) }
	return s
}

func number(s Setting, field func(*Config) *int) Setting {
	s.set = func(c *Config, v []string) error {
		return one(v, func(t string) error {
			n, err := strconv.Atoi(t)
			if err != nil {
				return fmt.Errorf("%q is not a whole number; write for example 3", t)
			}
			*field(c) = n
			return nil
		})
	}
	s.get = func(c *Config) []string { return []string{strconv.Itoa(*field(c))} }
	return s
}

func flag(s Setting, field func(*Config) *bool) Setting {
	s.Kind, s.Default = Bool, "false"
	s.set = func(c *Config, v []string) error {
		return one(v, func(t string) error {
			b, err := strconv.ParseBool(t)
			if err != nil {
				return fmt.Errorf("%q is neither true nor false", t)
			}
			*field(c) = b
			return nil
		})
	}
	s.get = func(c *Config) []string { return []string{strconv.FormatBool(*field(c))} }
	return s
}

func size(s Setting, field func(*Config) *Size) Setting {
	s.set = func(c *Config, v []string) error {
		return one(v, func(t string) (err error) { *field(c), err = ParseSize(t); return err })
	}
	s.get = func(c *Config) []string { return []string{field(c).String()} }
	return s
}

func level(s Setting, field func(*Config) *slog.Level) Setting {
	s.set = func(c *Config, v []string) error {
		return one(v, func(t string) (err error) { *field(c), err = ParseLevel(t); return err })
	}
	s.get = func(c *Config) []string { return []string{strings.ToLower(field(c).String())} }
	return s
}

// ParseLevel reads a log level.
func ParseLevel(t string) (slog.Level, error) {
	switch strings.ToLower(t) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("%q is not one of debug, info, warn, error", t)
}

// one hands the only value on.
func one(values []string, set func(string) error) error {
	if len(values) != 1 {
		return fmt.Errorf("takes one value, not %d", len(values))
	}
	return set(values[0])
}
