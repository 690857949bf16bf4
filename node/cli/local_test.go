package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"kvmesh/config"
	"kvmesh/node/certs"
)

func TestHelp(t *testing.T) {
	s := newShell("")
	for name, args := range map[string][]string{
		"help": {"--help"}, "help-serve": {"serve", "--help"}, "help-key": {"help", "key"}, "help-put": {"key", "put", "K", "-h"},
		"help-import": {"help", "import"}, "help-backup-restore": {"backup", "restore", "--help"},
	} {
		golden(t, name, s.ok(t, args...))
	}
	if a, b := s.ok(t, "help"), s.ok(t, "-h"); a != b {
		t.Errorf("help and -h differ:\n%s\n%s", a, b)
	}
}

func TestConfigShow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kvmesh.yaml")
	const text = "node:\n  region: eu-west\n  role: edge\nmesh:\n  join:\n    - a:8582\n    - b:8582\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newShell("")
	s.env["KVMESH_CONFIG"], s.env["KVMESH_LOG_LEVEL"], s.env["KVMESH_API_TOKEN_FILE"] = file, "debug", "hunter2"
	r := s.run("config", "show", "--origin", "--role", "voter", "--mesh-key", file, "--open-http")
	if r.code != ExitOK || r.err != "" {
		t.Fatalf("exit %d: %s", r.code, r.err)
	}
	got := regexp.MustCompile(regexp.QuoteMeta(file)).ReplaceAllString(r.out, "FILE")
	golden(t, "config-show-origin", regexp.MustCompile(`  +`).ReplaceAllString(got, "  ")) // the widths depend on FILE

	var doc struct {
		Settings []struct{ Name, Value, Origin string }
	}
	r = s.run("config", "show", "-o", "json")
	err := json.Unmarshal([]byte(r.out), &doc)
	if err != nil || len(doc.Settings) != len(config.Settings()) || doc.Settings[0].Origin != "" {
		t.Errorf("%v: %s", err, r.out)
	}
	if r.code != ExitOK || !strings.Contains(r.err, "serve would refuse this: mesh-key: is required") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

func TestServe(t *testing.T) {
	s := newShell("")
	r := s.run("serve")
	if r.code != ExitUsage || s.serve != nil || !strings.Contains(r.err, `kvmesh mesh-key new > mesh.key", then "--mesh-key mesh.key"`) {
		t.Errorf("without a mesh key: exit %d: %s", r.code, r.err)
	}
	s.env["KVMESH_REGION"] = "r1"
	s.ok(t, "serve", "--mesh-key", "k", "--join", "a:1,b:2", "--join", "c:3", "--role=edge", "--cache-size", "64MiB")
	want := []string{"a:1", "b:2", "c:3"}
	if c := s.serve; c == nil || c.Node.Region != "r1" || !reflect.DeepEqual(c.Mesh.Join, want) || c.Node.Role != config.RoleEdge ||
		c.Cache.Size != 64*config.MiB || c.Mesh.BootstrapExpect != 0 {
		t.Errorf("serve got %+v", s.serve)
	}
	if r := s.run("serve", "--cache-size", "x", "--role", "y"); r.code != ExitUsage || strings.Count(r.err, "\n  - ") != 2 {
		t.Errorf("two bad values: exit %d: %s", r.code, r.err)
	}
}

func TestDev(t *testing.T) {
	s := newShell("")
	s.ok(t, "dev")
	want := DevOptions{Voters: 3, Regions: []string{"us-east", "eu-west", "ap-south"}, EdgesPerRegion: 1, HTTPPort: 8580, LogLevel: 4}
	if !reflect.DeepEqual(*s.dev, want) {
		t.Errorf("dev got %+v, want %+v", *s.dev, want)
	}
	s.ok(t, "dev", "--voters", "1", "--regions", "a, b", "--edges-per-region", "2", "--http-port", "9000", "--data-dir", "d",
		"--wan", "--strict-limits", "--json",
		"--log-level", "debug")
	want = DevOptions{
		Voters: 1, Regions: []string{"a", "b"}, EdgesPerRegion: 2, HTTPPort: 9000, DataDir: "d", WAN: true, StrictLimits: true, JSON: true, LogLevel: -4,
	}
	if !reflect.DeepEqual(*s.dev, want) {
		t.Errorf("dev got %+v, want %+v", *s.dev, want)
	}
	for _, bad := range [][]string{
		{"--voters", "0"},
		{"--voters", "x"},
		{"--regions", "a,a"},
		{"--regions", ""},
		{"--edges-per-region", "-1"},
		{"--http-port", "65100"},
		{"--log-level", "loud"},
		{"extra"},
		{"--no-such-flag"},
	} {
		if r := s.run(append([]string{"dev"}, bad...)...); r.code != ExitUsage || r.err == "" {
			t.Errorf("%q: exit %d: %s", bad, r.code, r.err)
		}
	}
}

func TestMeshKeyNew(t *testing.T) {
	s := newShell("")
	one, two := s.ok(t, "mesh-key", "new"), s.ok(t, "mesh-key", "new")
	if _, err := certs.ParseMeshKey(one); err != nil || one == two {
		t.Errorf("%q, %q: %v", one, two, err)
	}
	file := filepath.Join(t.TempDir(), "mesh.key")
	s.ok(t, "mesh-key", "new", "--out", file)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", st.Mode(), err)
	}
	if r := s.run("mesh-key", "new", "--out", file); r.code != ExitFailure || !strings.Contains(r.err, "not overwritten") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key was changed: %v", err)
	}
}

func TestUsageErrors(t *testing.T) {
	s := newShell("")
	for _, args := range [][]string{
		{},
		{"nonsense"},
		{"key"},
		{"key", "nonsense"},
		{"key", "get"},
		{"key", "get", "a", "b"},
		{"key", "put", "a"},
		{"key", "put", "a", "b", "--file", "c"},
		{"key", "get", "a", "-o", "yaml"},
		{"key", "get", "a", "--nonsense"},
		{"key", "get", "a", "--url"},
		{"key", "get", "a", "--url", "ftp://x"},
		{"key", "get", "a", "--token-file", "/no/such/file"},
		{"key", "list", "--limit", "-1"},
		{"import"},
		{"import", "d", "--parallel", "0"},
		{"version", "x"},
		{"--nonsense"},
		{"key", "get", "a", "--out", "f", "-o", "json"},
	} {
		if r := s.run(args...); r.code != ExitUsage || r.out != "" || !strings.HasPrefix(r.err, "kvmesh: ") {
			t.Errorf("kvmesh %q: exit %d, stdout %q, stderr %q", args, r.code, r.out, r.err)
		}
	}
	for args, want := range map[string]string{
		"put a b": "there is kvmesh key put\n",
		"create":  "there is kvmesh namespace create\n",
		"kv get":  "see kvmesh --help\n",
	} {
		if r := s.run(strings.Fields(args)...); r.code != ExitUsage || !strings.HasSuffix(r.err, want) {
			t.Errorf("kvmesh %s: exit %d, %s", args, r.code, r.err)
		}
	}
}

func TestVersion(t *testing.T) {
	s := newShell("")
	var doc struct{ Version, Go string }
	if err := json.Unmarshal([]byte(s.ok(t, "version", "-o", "json")), &doc); err != nil || doc.Version == "" || doc.Go == "" {
		t.Errorf("%+v, %v", doc, err)
	}
	if got := s.ok(t, "version"); !strings.HasPrefix(got, "kvmesh "+doc.Version) {
		t.Errorf("got %q", got)
	}
}

func TestHumanNumbers(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10137: "9.9 KiB", 10240: "10 KiB", 1<<20 - 1: "1.0 MiB", 25 << 20: "25 MiB",
		1<<63 - 1: "8.0 EiB",
	} {
		if got := humanBytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0 ms", 999 * time.Millisecond: "999 ms", 59 * time.Second: "59 s", 90 * time.Second: "1m30s", time.Hour: "1h",
		25*time.Hour + time.Minute: "1d1h", 400 * 24 * time.Hour: "1y35d", -time.Minute: "-1m",
	} {
		if got := humanDuration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
