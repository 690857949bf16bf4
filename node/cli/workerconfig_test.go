package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// What workerd makes of these files was tried with workerd itself; scripts/clients/workerd goes through the binding.
func TestWorkerConfig(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	port := f.URL[strings.LastIndexByte(f.URL, ':')+1:]
	fileID := regexp.MustCompile(`@0x[89a-f][0-9a-f]{15};`)
	steady := func(out string) string {
		if !fileID.MatchString(out) {
			t.Errorf("no id of a file in %s", out)
		}
		return fileID.ReplaceAllString(strings.ReplaceAll(out, port, "PORT"), "@FILE;")
	}
	golden(t, "worker-config", steady(s.ok(t, "worker-config")))

	f.token = `a"token\of-the-right-length`
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(f.token), 0o600); err != nil {
		t.Fatal(err)
	}
	golden(t, "worker-config-token", steady(s.ok(t, "worker-config", "--namespace", "default", "--binding", "CACHE_1", "--token-file", path)))
	golden(t, "worker-config-json", steady(s.ok(t, "worker-config", "-o", "json", "--token-file", path)))

	if r := s.run("worker-config", "--namespace", "missing", "--token-file", path); r.code != ExitFailure || !strings.Contains(r.err, string(kv.CodeNamespaceNotFound)) {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
	if r := s.run("worker-config"); r.code != ExitFailure || r.out != "" {
		t.Errorf("without the token: exit %d: %s", r.code, r.out)
	}
	for _, name := range []string{"", "a.b", "1st", "KV\n", "ü"} {
		if r := s.run("worker-config", "--binding", name, "--token-file", path); r.code != ExitUsage || r.out != "" {
			t.Errorf("--binding %q: exit %d: %s", name, r.code, r.out)
		}
	}
}
