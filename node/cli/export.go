package cli

import (
	"context"
	"encoding/json"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) exportCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "export",
		Usage:     "write a namespace to files",
		ArgsUsage: "DIR | FILE | -",
		Description: "dir: the key is the path below DIR. Keys that a file system cannot hold get another name; those, metadata and expirations " +
			"are listed in " + manifestName + ", so that import restores all of it. DIR must be empty or missing.\n" +
			"ndjson: FILE, or standard output for -, gets an object a line: key, value (text, or base64 with \"base64\": true), metadata, " +
			"expiration (unix seconds).\n" +
			"wrangler: an array of such objects, as \"wrangler kv bulk put\" takes it.\n" +
			"What fails is named, does not stop the rest, and makes the exit code 1. Until an export is whole, it is in FILE.partial, and how far " +
			"it has come in FILE.partial.state; in DIR/" + exportDir + " for a directory. --resume goes on there, with the same arguments.",
		Flags: transferFlags(
			&ucli.StringFlag{Name: "format", Value: formatDir, Usage: "`FORMAT` to write: dir, ndjson or wrangler"},
			&ucli.StringFlag{Name: "prefix", Usage: "only keys that begin with `TEXT`, which stays part of them"},
		),
		Action: func(c *ucli.Context) error {
			if err := exactly(c, 1, "DIR, FILE or -"); err != nil {
				return err
			}
			switch format := c.String("format"); {
			case format == formatDir && c.Args().First() == stdStream:
				return usagef("a directory cannot go to standard output; use --format ndjson or wrangler")
			case format == formatDir:
				return r.exportDir(c)
			case format == formatNDJSON || format == formatWrangler:
				return r.exportStream(c, format)
			default:
				return usagef("--format %s is unknown; use dir, ndjson or wrangler", format)
			}
		},
	}
}

// exportArgs are what must be the same when an export goes on.
func exportArgs(c *ucli.Context, ns client.Namespace, format string) []stateArg {
	return []stateArg{{"--format", format}, {"--namespace (its id)", ns.ID}, {"--prefix", c.String("prefix")}}
}

// source is what exports read from.
type source struct {
	client            *client.Client
	namespace, prefix string
}

// listedItem is a key as the listing shows it.
func listedItem(k client.Key) item {
	return item{key: k.Name, mark: k.Name, size: k.Size, revision: k.Revision, entry: manifestEntry{Metadata: k.Metadata}}
}

// metadataOf is the metadata of what get has returned, as it was written, which the listing shows: a header escapes it.
func (it item) metadataOf(obj *client.Object) json.RawMessage {
	if obj.Revision == it.revision {
		return it.entry.Metadata
	}
	return obj.Metadata
}

// ordered goes through keys and makes sure that they come in the order of their bytes, on which much depends.
type ordered struct{ last string }

func (o *ordered) next(key string) error {
	if key <= o.last {
		return fmt.Errorf("the node listed %q after %q, which is not in order", key, o.last)
	}
	o.last = key
	return nil
}

// get reads the key at the revision of the listing or a later one: a cache may not know yet what the listing, which
// comes from a voter, showed already.
func (ex *source) get(ctx context.Context, it item) (*client.Object, error) {
	obj, err := ex.client.Get(ctx, ex.namespace, it.key, client.GetOptions{})
	if err == nil && obj.Revision >= it.revision {
		return obj, nil
	}
	if err == nil {
		err = obj.Body.Close()
	}
	if err != nil && client.CodeOf(err) != kv.CodeKeyNotFound {
		return nil, err
	}
	obj, err = ex.client.Get(ctx, ex.namespace, it.key, client.GetOptions{CacheTTL: "0"})
	if client.CodeOf(err) == kv.CodeKeyNotFound {
		return nil, errSkipped // deleted or expired since it was listed
	}
	return obj, err
}
