package raftstore

import (
	"bytes"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// What the library warns of is a warning, unless every new mesh has it; and nothing is news about a node that leaves.
func TestLibraryLevels(t *testing.T) {
	var out bytes.Buffer
	leaving := new(atomic.Bool)
	l := (&libraryLogger{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), leaving: leaving}).With("node", "a")
	for _, tc := range []struct {
		at    hclog.Level
		msg   string
		args  []any
		want  string
		leave bool
	}{
		{at: hclog.Warn, msg: "failed to contact", args: []any{"server-id", "b"}, want: "WARN"},
		{at: hclog.Warn, msg: "no known peers, aborting election", want: "INFO"},
		{at: hclog.Warn, msg: "failed to get previous log", args: []any{"previous-index", 1}, want: "INFO"},
		{at: hclog.Warn, msg: "heartbeat timeout reached, starting election", args: []any{"last-leader-id", raft.ServerID("b")}, want: "WARN"},
		{at: hclog.Warn, msg: "heartbeat timeout reached, starting election", args: []any{"last-leader-id", raft.ServerID("")}, want: "INFO"},
		{at: hclog.Warn, msg: "heartbeat timeout reached, starting election", args: []any{"last-leader-id"}, want: "WARN"},
		{at: hclog.Error, msg: "failed to heartbeat to", want: "ERROR"},
		{at: hclog.Error, msg: "failed to heartbeat to", want: "DEBUG", leave: true},
	} {
		out.Reset()
		leaving.Store(tc.leave)
		l.Log(tc.at, tc.msg, tc.args...)
		if got := out.String(); !strings.Contains(got, "level="+tc.want+" ") || !strings.Contains(got, "node=a") {
			t.Errorf("%s %v, leaving %v: %s", tc.msg, tc.args, tc.leave, got)
		}
	}
}
