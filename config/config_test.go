package config

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var fileName = regexp.MustCompile(`/[^ ]*kvmesh\.yaml`)

var machine = Machine{Hostname: "host-1", Memory: 16 * GiB}

// load runs Load on maps and a file's text.
func load(t *testing.T, flags map[string][]string, env map[string]string, file string) (*Loaded, error) {
	t.Helper()
	src := Sources{
		Flag:    func(n string) ([]string, bool) { v, ok := flags[n]; return v, ok },
		Env:     func(n string) (string, bool) { v, ok := env[n]; return v, ok },
		Machine: &machine,
	}
	if file != "" {
		src.File = filepath.Join(t.TempDir(), "kvmesh.yaml")
		if err := os.WriteFile(src.File, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(src)
}

func mustLoad(t *testing.T, flags map[string][]string, env map[string]string, file string) *Loaded {
	t.Helper()
	l, err := load(t, flags, env, file)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestPrecedenceOfSources(t *testing.T) {
	flag := map[string][]string{"region": {"by-flag"}}
	env := map[string]string{"KVMESH_REGION": "by-env"}
	const file = "# a comment\nnode:\n  region: by-file\n"
	for _, tc := range []struct {
		name   string
		flags  map[string][]string
		env    map[string]string
		file   string
		want   string
		source Source
		detail string
	}{
		{"nothing", nil, nil, "", "default", FromDefault, ""},
		{"file", nil, nil, file, "by-file", FromFile, "kvmesh.yaml:3"},
		{"environment over file", nil, env, file, "by-env", FromEnv, "KVMESH_REGION"},
		{"an empty variable is not set", nil, map[string]string{"KVMESH_REGION": ""}, file, "by-file", FromFile, ":3"},
		{"flag over file", flag, nil, file, "by-flag", FromFlag, "--region"},
		{"flag over all", flag, env, file, "by-flag", FromFlag, "--region"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := mustLoad(t, tc.flags, tc.env, tc.file)
			o := l.Origin("region")
			if l.Config.Node.Region != tc.want || o.Source != tc.source || !strings.HasSuffix(o.Detail, tc.detail) {
				t.Errorf("region %q from %v, want %q from %v …%s", l.Config.Node.Region, o, tc.want, tc.source, tc.detail)
			}
		})
	}
}

// Every setting can be given in each of the three ways, and all three read the same text in the same way.
func TestEverySettingFromEverySource(t *testing.T) {
	sample := map[string]string{
		"name": "n1", "role": "edge", "region": "eu-west", "data-dir": "/var/lib/kvmesh", "http": "127.0.0.1:1", "peer": "127.0.0.1:2",
		"gossip": "127.0.0.1:3", "admin": "127.0.0.1:4", "advertise": "host", "join": "a:1,b:2", "bootstrap-expect": "3",
		"http-cert": "c.pem", "http-key": "k.pem", "mesh-key": "m.key", "profile": "wan", "api-token-file": "t", "open-http": "true", "strict-limits": "true", "cache-size": "64MiB",
		"log-level": "debug", "log-format": "json",
	}
	for _, s := range Settings() {
		v, ok := sample[s.Name]
		if !ok {
			t.Fatalf("no sample for the setting %s", s.Name)
		}
		group, leaf, _ := strings.Cut(s.YAML, ".")
		byFlag := mustLoad(t, map[string][]string{s.Name: {v}}, nil, "")
		byEnv := mustLoad(t, nil, map[string]string{s.Env(): v}, "")
		byFile := mustLoad(t, nil, nil, group+":\n  "+leaf+": "+v+"\n")
		for _, l := range []*Loaded{byFlag, byEnv, byFile} {
			if got := s.Value(&l.Config); got != v {
				t.Errorf("%s from %v is %q, want %q", s.Name, l.Origin(s.Name), got, v)
			}
			if !reflect.DeepEqual(l.Config, byFlag.Config) {
				t.Errorf("%s: %v gives another configuration than the flag", s.Name, l.Origin(s.Name))
			}
		}
		if reflect.DeepEqual(byFlag.Config, mustLoad(t, nil, nil, "").Config) {
			t.Errorf("%s: the sample changed nothing", s.Name)
		}
	}
}

func TestListsFromRepeatedFlagsCommasAndSequences(t *testing.T) {
	want := []string{"a:1", "b:2", "c:3"}
	for name, l := range map[string]*Loaded{
		"flag": mustLoad(t, map[string][]string{"join": {"a:1, b:2", "c:3"}}, nil, ""),
		"env":  mustLoad(t, nil, map[string]string{"KVMESH_JOIN": "a:1,b:2,,c:3"}, ""),
		"file": mustLoad(t, nil, nil, "mesh:\n  join: [a:1, b:2, 'c:3']\n"),
	} {
		if !reflect.DeepEqual(l.Config.Mesh.Join, want) {
			t.Errorf("%s: %q, want %q", name, l.Config.Mesh.Join, want)
		}
	}
}

func TestDerivedDefaults(t *testing.T) {
	for _, tc := range []struct {
		name  string
		flags map[string][]string
		want  int
	}{
		{"a lone voter starts a mesh", nil, 1},
		{"a voter with seeds joins one", map[string][]string{"join": {"a:1"}}, 0},
		{"an edge never does", map[string][]string{"role": {"edge"}}, 0},
		{"an explicit number stays", map[string][]string{"join": {"a:1"}, "bootstrap-expect": {"3"}}, 3},
		{"an explicit 0 too", map[string][]string{"bootstrap-expect": {"0"}}, 0},
	} {
		if got := mustLoad(t, tc.flags, nil, "").Config.Mesh.BootstrapExpect; got != tc.want {
			t.Errorf("%s: bootstrap-expect %d, want %d", tc.name, got, tc.want)
		}
	}
	c := DefaultOn(machine)
	if c.Cache.Size != 4*GiB || c.Node.Name != "host-1" || c.Mesh.BootstrapExpect != 1 || c.Log.Level != slog.LevelInfo {
		t.Errorf("the default is %+v", c)
	}
	if got := DefaultOn(Machine{Memory: MiB}).Cache.Size; got != minCacheSize {
		t.Errorf("a tiny machine gets a cache of %v, want the least that works", got)
	}
}

func TestStrictFile(t *testing.T) {
	for _, tc := range []struct{ name, file, want string }{
		{"unknown key", "node:\n  rigion: x\n", "node.rigion (file FILE:2): unknown key; did you mean node.region?"},
		{"unknown group", "nodes:\n  region: x\n", "nodes (file FILE:1): unknown key"},
		{"a flag's name", "bootstrap-expect: 3\n", "bootstrap-expect (file FILE:1): unknown key; write it as mesh.bootstrap-expect"},
		{"below a value", "node:\n  region:\n    x: 1\n", "node.region (file FILE:3): takes one value"},
		{"a value for a group", "node: edge\n", "node (file FILE:1): is not a mapping"},
		{"given twice", "log:\n  level: info\n  level: warn\n", "log.level (file FILE:3): given twice"},
		{"a list for one value", "log:\n  level: [info]\n", "log.level (file FILE:2): takes one value"},
		{"a bad value", "\ncache:\n  size: 12 apples\n", "cache-size (file FILE:3): \"12 apples\" is not a size"},
		{"no YAML", "node: [\n", "config: FILE is not YAML"},
		{"two documents", "node:\n---\nnode:\n", "config: FILE holds more than one YAML document"},
		{"not a mapping", "- a\n", "config (file FILE:1): is not a mapping"},
		{"nested lists", "mesh:\n  join: [[a]]\n", "mesh.join (file FILE:2): an item is not a text"},
		{"an alias to itself", "node: &n\n  region: *n\n", "node.region (file FILE:1): takes one value"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, nil, nil, tc.file)
			if err == nil {
				t.Fatal("accepted")
			}
			got := fileName.ReplaceAllString(err.Error(), "FILE")
			if !strings.Contains(got, tc.want) {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
	for _, empty := range []string{"\n", "# nothing\n", "node:\n", "node:\n  region:\n"} {
		if l := mustLoad(t, nil, nil, empty); l.Config.Node.Region != "default" {
			t.Errorf("%q changed the region to %q", empty, l.Config.Node.Region)
		}
	}
}

func TestEveryProblemAtOnce(t *testing.T) {
	_, err := load(t, map[string][]string{"log-level": {"loud"}}, map[string]string{"KVMESH_ROLE": "king"}, "nodde:\n")
	var ps Problems
	if !errors.As(err, &ps) || len(ps) != 3 {
		t.Fatalf("want three problems: %v", err)
	}
	c := DefaultOn(machine)
	c.Node.Region, c.Listen.HTTP, c.Cache.Size = "", "nonsense", 1
	if err := c.Validate(); !errors.As(err, &ps) || len(ps) != 4 { // and the mesh key
		t.Fatalf("want four problems: %v", err)
	}
}

func TestValidate(t *testing.T) {
	good := func() Config {
		c := DefaultOn(machine)
		c.Mesh.KeyFile = "mesh.key"
		return c
	}
	if c := good(); c.Validate() != nil {
		t.Fatal(c.Validate())
	}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		key    string // of the only problem; empty = none
		remedy string
	}{
		{"no mesh key", func(c *Config) { c.Mesh.KeyFile = "" }, "mesh-key", "kvmesh mesh-key new > mesh.key"},
		{"the key itself", func(c *Config) { c.Mesh.KeyFile = strings.Repeat("0a", 32) }, "mesh-key", "not the name of a file"},
		{"all interfaces", func(c *Config) { c.Listen.Gossip = ":8582" }, "advertise", "--advertise HOST"},
		{"all interfaces of IPv6", func(c *Config) { c.Listen.Peer = "[::]:8581" }, "advertise", "--peer"},
		{"all interfaces, mapped", func(c *Config) { c.Listen.Peer = "[::ffff:0.0.0.0]:8581" }, "advertise", "--peer"},
		{"all interfaces, advertised", func(c *Config) { c.Listen.Peer, c.Listen.Advertise = "0.0.0.0:8581", "10.0.0.1" }, "", ""},
		{"advertised nowhere", func(c *Config) { c.Listen.Advertise = "0.0.0.0" }, "advertise", "reach this one"},
		{"advertised with a port", func(c *Config) { c.Listen.Advertise = "h:1" }, "advertise", "without scheme and port"},
		{"open HTTP by accident", func(c *Config) { c.Listen.HTTP = "10.0.0.1:8580" }, "http", "--api-token-file FILE"},
		{"a certificate without its key", func(c *Config) { c.Listen.HTTPCert = "c.pem" }, "http-key", "add --http-key FILE"},
		{"a key without its certificate", func(c *Config) { c.Listen.HTTPKey = "k.pem" }, "http-cert", "add --http-cert FILE"},
		{"a key in place of its file", func(c *Config) {
			c.Listen.HTTPCert, c.Listen.HTTPKey = "c.pem", "-----BEGIN PRIVATE KEY-----"
		}, "http-key", "name the file"},
		{"a name is not loopback", func(c *Config) { c.Listen.HTTP = "example.org:8580" }, "http", "--open-http"},
		{"open HTTP on purpose", func(c *Config) { c.Listen.HTTP, c.API.OpenHTTP = "10.0.0.1:8580", true }, "", ""},
		{"HTTP with a token", func(c *Config) { c.Listen.HTTP, c.API.TokenFile = "10.0.0.1:8580", "t" }, "", ""},
		{"loopback names", func(c *Config) { c.Listen.HTTP, c.Listen.Peer = "localhost:1", "[::1]:2" }, "", ""},
		{"127.0.0.2 is loopback", func(c *Config) { c.Listen.HTTP = "127.0.0.2:1" }, "", ""},
		{"mapped loopback", func(c *Config) { c.Listen.HTTP = "[::ffff:127.0.0.1]:1" }, "", ""},
		{"one port twice", func(c *Config) { c.Listen.Admin = "127.0.0.1:8580" }, "admin", "--http"},
		{"any free port twice", func(c *Config) { c.Listen.Admin, c.Listen.Peer = "127.0.0.1:0", "127.0.0.1:0" }, "", ""},
		{"port too large", func(c *Config) { c.Listen.Admin = "127.0.0.1:65536" }, "admin", "host:port"},
		{"port by name", func(c *Config) { c.Listen.Admin = "127.0.0.1:http" }, "admin", "host:port"},
		{"edge without seeds", func(c *Config) { c.Node.Role, c.Mesh.BootstrapExpect = RoleEdge, 0 }, "join", "--join HOST:PORT"},
		{"edge that bootstraps", func(c *Config) { c.Node.Role, c.Mesh.Join = RoleEdge, []string{"h:1"} }, "bootstrap-expect", "--role voter"},
		{"seed without port", func(c *Config) { c.Mesh.Join = []string{"host"} }, "join", "10.0.0.1:8582"},
		{"seed nowhere", func(c *Config) { c.Mesh.Join = []string{"0.0.0.0:1"} }, "join", "advertises"},
		{"too many voters", func(c *Config) { c.Mesh.BootstrapExpect = 8 }, "bootstrap-expect", "0 to 7"},
		{"region with a space", func(c *Config) { c.Node.Region = "eu west" }, "region", "letters"},
		{"region too long", func(c *Config) { c.Node.Region = strings.Repeat("x", 65) }, "region", "shorter"},
		{"no role", func(c *Config) { c.Node.Role, c.Mesh.BootstrapExpect = "", 0 }, "role", "voter, learner or edge"},
		{"no data directory", func(c *Config) { c.Node.DataDir = "" }, "data-dir", "survives"},
		{"cache too small", func(c *Config) { c.Cache.Size = minCacheSize - 1 }, "cache-size", "8MiB or more"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := good()
			tc.change(&c)
			err := c.Validate()
			var ps Problems
			switch {
			case tc.key == "":
				if err != nil {
					t.Errorf("refused: %v", err)
				}
			case !errors.As(err, &ps) || len(ps) != 1:
				t.Errorf("want one problem: %v", err)
			case ps[0].Key != tc.key || !strings.Contains(err.Error(), tc.remedy):
				t.Errorf("want one of %s that says %q: %v", tc.key, tc.remedy, err)
			}
		})
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]Size{
		"0": 0, "4096": 4096, "256MiB": 256 * MiB, "256 mib": 256 * MiB, "1.5GiB": 3 * GiB / 2, "2TiB": 2 * TiB, "7B": 7, "1023KiB": 1023 * KiB,
	} {
		got, err := ParseSize(in)
		if err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%q prints as %q, which is read as %d, %v", in, got, again, err)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "1e9", "0x10", "inf", "NaN", "10MB", "1 000", "99999999TiB", "12 apples", "1_000"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q is read as %d", in, got)
		}
	}
}

func TestMachineMemory(t *testing.T) {
	if got, ok := parseMeminfo("MemFree: 1 kB\nMemTotal:       16384 kB\n"); !ok || got != 16*MiB {
		t.Errorf("got %v, %v", got, ok)
	}
	for _, bad := range []string{"", "MemTotal:", "MemTotal: x kB", "MemTotal: -5 kB", "MemTotal: 99999999999999999999 kB"} {
		if got, ok := parseMeminfo(bad); ok {
			t.Errorf("%q is read as %v", bad, got)
		}
	}
}

// Whoever gives a secret where its file's name belongs must not find it in any output.
func TestSecretsAreNotShown(t *testing.T) {
	const secret = "hunter2-hunter2-hunter2"
	l := mustLoad(t, map[string][]string{"mesh-key": {secret}, "api-token-file": {secret}}, nil, "")
	for _, r := range l.Rows() {
		if strings.Contains(r.Value, secret) {
			t.Errorf("%s shows %q", r.Name, r.Value)
		}
	}
	file := filepath.Join(t.TempDir(), "mesh.key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	shown := false
	for _, r := range mustLoad(t, map[string][]string{"mesh-key": {file}}, nil, "").Rows() {
		shown = shown || r.Value == file
	}
	if !shown {
		t.Error("the name of a file that exists is hidden")
	}
	hex := strings.Repeat("0f", 32)
	if err := (Config{Mesh: Mesh{KeyFile: hex}}).Validate(); strings.Contains(err.Error(), hex) {
		t.Error("a problem quotes the key")
	}
}

func TestTableIsConsistent(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Settings() {
		for _, id := range []string{s.Name, s.YAML, s.Env()} {
			if seen[id] {
				t.Errorf("%q names two settings", id)
			}
			seen[id] = true
		}
		if s.Usage == "" || (s.Kind != Bool && s.Placeholder == "") {
			t.Errorf("%s lacks a usage or a placeholder", s.Name)
		}
		if !strings.Contains(Reference(), "| `"+s.Env()+"` | `"+s.YAML+"` |") {
			t.Errorf("the reference lacks %s", s.Name)
		}
	}
}
