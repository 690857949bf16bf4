// Package cli is the command line of kvmesh, one file per command: `serve` and `dev` read their settings and call the
// hooks that the composition root gives them, everything else is a client of the native HTTP API. The package holds no
// state: an App is a value, and what it reads and writes is handed to Run.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/config"
)

// Exit codes.
const (
	ExitOK = 0
	// ExitFailure: the command was understood, and failed.
	ExitFailure = 1
	// ExitUsage: the command line, the environment or the configuration is wrong.
	ExitUsage = 2
)

// IO is what a command reads and writes.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
}

// Hooks run the commands that make nodes. They block until ctx ends or something fails; a config.Problems error counts
// as a mistake of usage.
type Hooks struct {
	Serve func(context.Context, config.Config, IO) error
	Dev   func(context.Context, DevOptions, IO) error
}

// App is the program without its surroundings. It may run any number of times, at the same time too.
type App struct {
	hooks Hooks
	// Env looks an environment variable up; os.LookupEnv unless replaced.
	Env func(string) (string, bool)
	// Machine is what derived defaults depend on; nil asks the system.
	Machine *config.Machine
	// savePause is the time between two times that the state of a transfer is kept.
	savePause time.Duration
}

// New returns the program.
func New(h Hooks) *App { return &App{hooks: h, Env: os.LookupEnv, savePause: savePause} }

// usageError is a mistake in how the command was called.
type usageError struct {
	msg string
}

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// errReported ends a command that has already said what failed.
var errReported = errors.New("reported")

// Run executes one command line, without the program's name, and returns the exit code. It returns once everything that
// the command started has ended.
func (a *App) Run(ctx context.Context, args []string, stdio IO) int {
	run := &run{App: a, IO: stdio}
	app := run.program()
	err := app.RunContext(ctx, append([]string{app.Name}, arrange(app.Commands, args)...))
	var usage *usageError
	var problems config.Problems
	switch {
	case err == nil:
		return ExitOK
	case errors.Is(err, errReported):
		return ExitFailure
	case errors.As(err, &usage):
		run.printErr(usage.msg)
		return ExitUsage
	case errors.As(err, &problems):
		run.printErr(problems.Error())
		return ExitUsage
	}
	run.printErr(describe(err, ctx.Err() != nil))
	return ExitFailure
}

// run is one execution.
type run struct {
	*App
	IO
}

// printErr writes a message for people. When standard error is broken there is nobody left to tell.
func (r *run) printErr(msg string) { _, _ = fmt.Fprintf(r.Err, "kvmesh: %s\n", msg) }

// printf writes to standard output.
func (r *run) printf(format string, args ...any) error {
	_, err := fmt.Fprintf(r.Out, format, args...)
	return err
}

func (r *run) program() *ucli.App {
	app := &ucli.App{
		Name: "kvmesh", HelpName: "kvmesh",
		Usage:     "a self-hosted, global, low-latency key-value store",
		UsageText: "kvmesh COMMAND [options] [arguments]     kvmesh COMMAND --help explains one of them",
		Reader:    r.In, Writer: r.Out, ErrWriter: r.Err,
		HideVersion: true, HideHelp: true, HideHelpCommand: true,
		Flags:        []ucli.Flag{helpFlag()},
		OnUsageError: onUsageError,
		Action:       group,
		// The library would end the process.
		ExitErrHandler: func(*ucli.Context, error) {},
		Commands: []*ucli.Command{
			r.serveCommand(), r.devCommand(), r.configCommand(), r.meshKeyCommand(),
			r.keyCommand(), r.txnCommand(), r.namespaceCommand(), r.statusCommand(), r.clusterCommand(), r.importCommand(), r.exportCommand(),
			r.backupCommand(), r.benchCommand(), r.workerConfigCommand(), r.versionCommand(),
		},
	}
	for _, c := range app.Commands {
		complete(c)
	}
	return app
}

// complete gives a command and those below it what all have. The library's own help command and help flag are values
// that all programs of a process share and write to; ours replace them.
func complete(c *ucli.Command) {
	c.HideHelp, c.HideHelpCommand = true, true
	c.OnUsageError = onUsageError
	c.Flags = append(c.Flags, helpFlag())
	if len(c.Subcommands) > 0 {
		c.Action = group
	}
	for _, sub := range c.Subcommands {
		complete(sub)
	}
}

func helpFlag() ucli.Flag {
	return &ucli.BoolFlag{Name: "help", Aliases: []string{"h"}, Usage: "show this help", DisableDefaultText: true}
}

func onUsageError(c *ucli.Context, err error, _ bool) error {
	if errors.Is(err, flag.ErrHelp) { // only where no help flag is defined, which is nowhere
		return nil
	}
	return usagef("%v; see %s --help", err, c.Command.HelpName)
}

// group is the action of a command that only has others below it.
func group(c *ucli.Context) error {
	name := c.Command.HelpName
	if arg := c.Args().First(); arg != "" {
		var meant []string // the groups that have it
		for _, s := range c.Command.Subcommands {
			if slices.ContainsFunc(s.Subcommands, func(sub *ucli.Command) bool { return sub.HasName(arg) }) {
				meant = append(meant, fmt.Sprintf("%s %s %s", name, s.Name, arg))
			}
		}
		if len(meant) > 0 {
			return usagef("%s has no command %q; there is %s", name, arg, strings.Join(meant, ", and "))
		}
		return usagef("%s has no command %q; see %s --help", name, arg, name)
	}
	var subs []string
	for _, s := range c.Command.Subcommands {
		subs = append(subs, s.Name)
	}
	return usagef("%s needs a command: %s; see %s --help", name, strings.Join(subs, ", "), name)
}

// exactly checks the number of arguments; names is how the help shows them.
func exactly(c *ucli.Context, n int, names string) error {
	if got := c.NArg(); got != n {
		return usagef("%s takes %s, not %d arguments; see %s --help", c.Command.HelpName, names, got, c.Command.HelpName)
	}
	return nil
}

// arrange brings a command line into the one order that the library reads: flags, then arguments. People write
// `kvmesh key get NAME -o json`. Everything behind `--` is an argument; `help X` becomes `X --help`.
func arrange(cmds []*ucli.Command, args []string) []string {
	if len(args) > 0 && args[0] == "help" {
		args = append(args[1:len(args):len(args)], "--help")
	}
	var path, flags, rest []string
	var leaf *ucli.Command
	for len(args) > 0 && len(cmds) > 0 {
		next := find(cmds, args[0])
		if next == nil {
			break
		}
		path, args, leaf, cmds = append(path, args[0]), args[1:], next, next.Subcommands
	}
	if leaf == nil || len(leaf.Subcommands) > 0 {
		return append(path, args...)
	}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name := strings.TrimLeft(arg, "-")
		switch {
		case arg == "--":
			rest, args = append(rest, args...), nil
		case !strings.HasPrefix(arg, "-") || name == "":
			rest = append(rest, arg)
		case name == "help" || name == "h":
			return append(path, "--help")
		default:
			flags = append(flags, arg)
			if !takesValue(leaf, name) {
				continue
			}
			if len(args) == 0 { // nothing may follow, so that the library sees that the value is missing
				return append(path, flags...)
			}
			flags, args = append(flags, args[0]), args[1:]
		}
	}
	if len(rest) > 0 {
		flags = append(append(flags, "--"), rest...)
	}
	return append(path, flags...)
}

// takesValue tells whether the flag's value is the next argument.
func takesValue(c *ucli.Command, name string) bool {
	for _, f := range c.Flags {
		for _, n := range f.Names() {
			if n == name {
				d, ok := f.(ucli.DocGenerationFlag)
				return ok && d.TakesValue()
			}
		}
	}
	return false // unknown, which the library reports; or written name=value
}

func find(cmds []*ucli.Command, name string) *ucli.Command {
	for _, c := range cmds {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}
