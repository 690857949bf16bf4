package raftstore

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// libraryLogger gives the library's log to slog. Only what hashicorp/raft calls does something; levels are slog's business.
type libraryLogger struct {
	log     *slog.Logger
	leaving *atomic.Bool // once true, nothing is worth more than a debug line
	name    string
	args    []any
}

var _ hclog.Logger = (*libraryLogger)(nil)

func level(l hclog.Level) slog.Level {
	switch {
	case l >= hclog.Error:
		return slog.LevelError
	case l == hclog.Warn:
		return slog.LevelWarn
	case l == hclog.Info:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

func (l *libraryLogger) Log(at hclog.Level, msg string, args ...any) {
	switch {
	case l.leaving.Load():
		at = hclog.Debug
	case at == hclog.Warn && routine(msg, args):
		at = hclog.Info
	}
	if !l.log.Enabled(context.Background(), level(at)) {
		return
	}
	plain := make([]any, len(args))
	for i, a := range args {
		switch v := a.(type) {
		case hclog.Format: // a format string and its arguments, unformatted so far
			plain[i] = formatted(v)
		case fmt.Stringer:
			plain[i] = v.String()
		default:
			plain[i] = a
		}
	}
	l.log.Log(context.Background(), level(at), msg, plain...)
}

// routine reports whether a warning of the library says no more than that a voter is new, not yet in a mesh, or was away, or that
// an election begins where no leader was known: every new mesh has some of each.
func routine(msg string, args []any) bool {
	switch msg {
	case "no known peers, aborting election", "failed to get previous log", "appendEntries rejected, sending older logs":
		return true
	case "heartbeat timeout reached, starting election":
		i := slices.Index(args, any("last-leader-id"))
		return i >= 0 && i+1 < len(args) && args[i+1] == any(raft.ServerID(""))
	}
	return false
}

func formatted(f hclog.Format) string {
	if len(f) == 0 {
		return ""
	}
	format, ok := f[0].(string)
	if !ok {
		return fmt.Sprint(f...)
	}
	return fmt.Sprintf(format, f[1:]...)
}

func (l *libraryLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *libraryLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *libraryLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *libraryLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *libraryLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *libraryLogger) enabled(at hclog.Level) bool {
	return l.log.Enabled(context.Background(), level(at))
}
func (l *libraryLogger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *libraryLogger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *libraryLogger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *libraryLogger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *libraryLogger) IsError() bool { return l.enabled(hclog.Error) }

func (l *libraryLogger) ImpliedArgs() []any { return l.args }
func (l *libraryLogger) Name() string       { return l.name }

func (l *libraryLogger) With(args ...any) hclog.Logger {
	return &libraryLogger{log: l.log.With(args...), leaving: l.leaving, name: l.name, args: append(l.args[:len(l.args):len(l.args)], args...)}
}

func (l *libraryLogger) Named(name string) hclog.Logger {
	if l.name != "" {
		name = l.name + "." + name
	}
	return l.ResetNamed(name)
}

func (l *libraryLogger) ResetNamed(name string) hclog.Logger {
	return &libraryLogger{log: l.log, leaving: l.leaving, name: name, args: l.args}
}

func (l *libraryLogger) SetLevel(hclog.Level) {}

func (l *libraryLogger) GetLevel() hclog.Level {
	for _, at := range []hclog.Level{hclog.Debug, hclog.Info, hclog.Warn} {
		if l.enabled(at) {
			return at
		}
	}
	return hclog.Error
}

func (l *libraryLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.log.Handler(), slog.LevelInfo)
}

func (l *libraryLogger) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
