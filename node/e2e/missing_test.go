package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"kvmesh/node/nodetest"
)

// TestMissingFiles starts a voter whose data directory lacks a part. It must refuse, name what is missing and say what to
// do; or know for certain that nothing is lost.
func TestMissingFiles(t *testing.T) {
	bench(t)
	p := nodetest.NewProcs(t, program(t))
	voter := p.Add("voter", "voter")
	voter.Start(t)
	nodetest.WaitReady(t, voter)
	value := []byte("acknowledged")
	voter.Must(t, 200, http.MethodPut, "/v1/kv/default/k", value)
	voter.Kill(t)
	without := func(t *testing.T, name string, gone ...string) *nodetest.Proc {
		t.Helper()
		n := p.Add(name, "voter")
		if err := os.CopyFS(n.DataDir, os.DirFS(voter.DataDir)); err != nil {
			t.Fatal(err)
		}
		for _, path := range gone {
			path = filepath.Join(n.DataDir, path)
			if _, err := os.Stat(path); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	const aside, joins = "aside", "start again"
	for _, tc := range []struct {
		name string
		gone []string
		says []string
	}{
		{"no-log", []string{"store/raft.db"}, []string{"raft.db", "missing", aside, joins}},
		{"no-votes", []string{"store/vote.1", "store/vote.2"}, []string{"vote.1", "missing", aside, joins}},
		{"no-log-and-votes", []string{"store/raft.db", "store/vote.1", "store/vote.2"}, []string{aside, joins}},
		{"no-store", []string{"store"}, []string{"was a member", aside, joins}},
		{"no-identity", []string{"node-id", "key-check"}, []string{"node-id", "key-check", "missing", aside, joins}},
		{"no-node-id", []string{"node-id"}, []string{"node-id is missing", "write "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := without(t, tc.name, tc.gone...)
			refuses(t, n, append(tc.says, n.DataDir)...)
			if _, err := os.Stat(filepath.Join(n.DataDir, "store", "raft.db")); err == nil && tc.name == "no-log" {
				t.Error("a new log was made")
			}
			refuses(t, n, tc.says...) // the second start knows no better
		})
	}
	for name, gone := range map[string][]string{
		"one-vote":     {"store/vote.1"},      // the other copy has everything
		"no-state":     {"store/state"},       // the log begins at the first entry
		"no-snapshots": {"store/snapshots"},   // there was none
		"no-ballast":   {"store/ballast"},     // space kept free
		"no-peers":     {"key-check"},         // it is made again from the id
		"nothing":      {"lock", "key-check"}, // the lock is of the moment
	} {
		t.Run(name, func(t *testing.T) {
			n := without(t, name, gone...)
			n.Start(t)
			nodetest.WaitReady(t, n)
			nodetest.Eventually(t, visible, "what was acknowledged", func() error { return n.Sees(t.Context(), "/v1/kv/default/k", value) })
			n.Kill(t)
		})
	}
}
