package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/config"
	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

// clientFlags are those of every command that asks a node.
func clientFlags(more ...ucli.Flag) []ucli.Flag {
	return append(more,
		&ucli.StringFlag{Name: "url", Usage: "`URL` of a node [$KVMESH_URL]", DefaultText: client.DefaultURL},
		&ucli.StringFlag{Name: "token-file", Usage: "`FILE` with the bearer token [$KVMESH_TOKEN_FILE]"},
		caCertFlag(),
		&ucli.DurationFlag{
			Name: "retry-for", Value: client.DefaultRetryFor,
			Usage: "how long `TIME` to go on trying while the node cannot answer; 0s tries once",
		},
		outputFlag(),
	)
}

func namespaceFlag() ucli.Flag {
	return &ucli.StringFlag{Name: "namespace", Value: "default", Usage: "namespace, by `TITLE` or id"}
}

func retryUnknownFlag() ucli.Flag {
	return &ucli.BoolFlag{
		Name: "retry-unknown", DisableDefaultText: true,
		Usage: "repeat writes too of which nobody knows whether they were carried out",
	}
}

// fromEnv is a flag's value, or that of its environment variable.
func (r *run) fromEnv(c *ucli.Context, flag, env string) string {
	if c.IsSet(flag) {
		return c.String(flag)
	}
	v, _ := r.Env(config.EnvPrefix + env)
	return v
}

// connect makes the client that the flags and the environment describe.
func (r *run) connect(c *ucli.Context, parallel int) (*client.Client, error) {
	o := client.Options{
		URL: r.fromEnv(c, "url", "URL"), Parallel: parallel,
		RetryFor: c.Duration("retry-for"), RetryUnknown: c.Bool("retry-unknown"),
	}
	if o.RetryFor <= 0 {
		o.RetryFor = -1
	}
	var err error
	if o.RootCAs, _, err = r.roots(c); err != nil {
		return nil, err
	}
	if path := r.fromEnv(c, "token-file", "TOKEN_FILE"); path != "" {
		if o.Token, err = readToken(path); err != nil {
			return nil, usagef("--token-file: %v", err)
		}
	}
	cl, err := client.New(o)
	if err != nil {
		return nil, usagef("--url: %v", err)
	}
	return cl, nil
}

// maxTokenFileBytes bounds a token file; a token of more than 4096 bytes is refused by every node.
const maxTokenFileBytes = 8 << 10

// readToken reads a bearer token; white space around it does not matter. Its errors never quote the content.
func readToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxTokenFileBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(b))
	switch {
	case len(b) > maxTokenFileBytes:
		return "", fmt.Errorf("%s has more than %d bytes; is it the right file?", path, maxTokenFileBytes)
	case token == "":
		return "", fmt.Errorf("%s is empty", path)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return "", fmt.Errorf("%s holds blanks or characters outside ASCII within the token, which a header cannot carry", path)
	}
	return token, nil
}

// action wraps what a client command does: it checks the arguments, connects, and cleans up.
func (r *run) action(
	args int, names string, do func(c *ucli.Context, cl *client.Client, asJSON bool) error,
) ucli.ActionFunc {
	return func(c *ucli.Context) error {
		if err := exactly(c, args, names); err != nil {
			return err
		}
		asJSON, err := wantsJSON(c)
		if err != nil {
			return err
		}
		cl, err := r.connect(c, 0)
		if err != nil {
			return err
		}
		defer cl.Close()
		return do(c, cl, asJSON)
	}
}

// describe says in plain words what failed and what can be done. interrupted tells that the user has ended the command.
func describe(err error, interrupted bool) string {
	var unreachable *client.UnreachableError
	var answer *client.Error
	msg, code := plainly(err), client.CodeOf(err)
	switch {
	case interrupted && code == "" && errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.As(err, &unreachable) && tlsRemedy(err) != "":
		return msg + "\n  " + tlsRemedy(err)
	case errors.As(err, &unreachable):
		return msg + "\n  Is a node running there? " +
			`Start a mesh with "kvmesh dev", or name another node with --url or KVMESH_URL.`
	case errors.As(err, &answer) && code == "":
		return msg + "\n  Is it a kvmesh node? Check --url and KVMESH_URL."
	}
	if r := remedy(code); r != "" {
		return msg + "\n  " + r
	}
	return msg
}

// plainly is the message alone, in the form "message (code)" wherever it was found out.
func plainly(err error) string {
	var local *kv.Error
	if errors.As(err, &local) {
		return fmt.Sprintf("%s (%s)", local.Message, local.Code)
	}
	return err.Error()
}

// remedy is what the user of a command can do about a code, where the node's message cannot know.
func remedy(code kv.Code) string {
	switch code {
	case kv.CodeUnauthorized:
		return "Name the file that holds the token with --token-file or KVMESH_TOKEN_FILE."
	case kv.CodeNamespaceNotFound:
		return `See "kvmesh namespace list", or make it with "kvmesh namespace create TITLE".`
	case kv.CodeNamespaceExists:
		return `See "kvmesh namespace list", or choose another title.`
	case kv.CodeConflict:
		return `Read the keys again; "kvmesh key get KEY -o json" shows their revisions.`
	case kv.CodeConditionFailed:
		return `Read the key again; "kvmesh key get KEY -o json" shows its etag.`
	case kv.CodeNoLeader, kv.CodeNoQuorum:
		return `See "kvmesh status": writes need a majority of the voters. Reads of what a node holds go on.`
	case kv.CodeOutcomeUnknown:
		return "Read the state to see what happened, or repeat the command; --retry-unknown does that by itself."
	case kv.CodeOverloaded, kv.CodeTooManyRequests:
		return "Try again later, or with less --parallel."
	case kv.CodeDiskFull:
		return "Make room in the data directories of the voters."
	}
	return ""
}
