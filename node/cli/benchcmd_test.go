package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"kvmesh/node/cli/bench"
)

func TestBench(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	short := []string{"bench", "--keys", "20", "--warmup", "0s", "--duration", "1s", "--connections", "2", "--value-size", "1KiB", "--spread", "0", "--mix", "a"}
	var res bench.Result
	if err := json.Unmarshal([]byte(s.ok(t, append(short, "-o", "json")...)), &res); err != nil {
		t.Fatal(err)
	}
	stored := f.state("default")
	if reads := res.Ops["read"]; reads.Done == 0 || reads.Bytes != 1024*reads.Done || len(res.Failed) > 0 || len(stored) != 20 {
		t.Errorf("%d keys, %+v", len(stored), res)
	}
	if out := s.ok(t, append(short, "--no-fill", f.URL, f.URL)...); !strings.Contains(out, "P99.9") || !strings.Contains(out, "read") {
		t.Errorf("%s", out)
	}
	for args, want := range map[string]string{
		"--mix Q":                   `there is no mix "Q"`,
		"--rate 1e9":                "--rate 1000000000: use 0 to 10000000",
		"--rate NaN":                "--rate NaN",
		"--keys 0":                  "--keys 0",
		"--connections 100000":      "--connections 100000",
		"--zipf 1":                  "use 0 to 0.999",
		"--value-size 26MiB":        "--value-size 27262976: use 0 to 26214400",
		"--duration 0s":             "--duration must be longer than 0s",
		"http://127.0.0.1:1/a/path": "is not the URL of a node",
	} {
		if r := s.run(append([]string{"bench"}, strings.Fields(args)...)...); r.code != ExitUsage || !strings.Contains(r.err, want) {
			t.Errorf("bench %s: exit %d: %s", args, r.code, r.err)
		}
	}
	// Nothing is written where nothing can be measured.
	if r := s.run("bench", "--retry-for", "0s", "--namespace", "nope"); r.code != ExitFailure || !strings.Contains(r.err, "namespace_not_found") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}
