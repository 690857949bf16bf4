package cli

import (
	"fmt"
	"io"
	"os"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

func (r *run) keyCommand() *ucli.Command {
	return &ucli.Command{
		Name:        "key",
		Usage:       "read and write keys",
		Subcommands: []*ucli.Command{r.keyPut(), r.keyGet(), r.keyList(), r.keyDelete()},
	}
}

func (r *run) keyPut() *ucli.Command {
	return &ucli.Command{
		Name:      "put",
		Usage:     "write one key",
		ArgsUsage: "KEY VALUE | KEY - | KEY --file FILE",
		Description: "The value is the second argument, or standard input for -, or a file. Write -- before a key or value that " +
			"begins with a dash.",
		Flags: clientFlags(
			&ucli.StringFlag{Name: "file", Usage: "`FILE` that holds the value"},
			&ucli.StringFlag{Name: "metadata", Usage: "`JSON` to keep with the value, at most 1024 bytes"},
			&ucli.StringFlag{Name: "expiration", Usage: "`TIME` at which the key goes away, in unix seconds"},
			&ucli.StringFlag{Name: "expiration-ttl", Usage: "`SECONDS` after which the key goes away"},
			&ucli.StringFlag{Name: "if-match", Usage: "write only if the key has this `ETAG`, or exists at all for *"},
			&ucli.BoolFlag{Name: "if-none-match", Usage: "write only if the key does not exist", DisableDefaultText: true},
			namespaceFlag(), retryUnknownFlag(),
		),
		Action: func(c *ucli.Context) error {
			args := 2
			if c.IsSet("file") {
				args = 1
			}
			return r.action(args, "KEY and VALUE, KEY and -, or KEY and --file FILE", r.put)(c)
		},
	}
}

func (r *run) put(c *ucli.Context, cl *client.Client, asJSON bool) error {
	key := c.Args().Get(0)
	body, err := r.valueBody(c)
	if err != nil {
		return err
	}
	o := client.PutOptions{
		Expiration: c.String("expiration"), ExpirationTTL: c.String("expiration-ttl"), IfMatch: quoteETag(c.String("if-match")),
	}
	if c.IsSet("metadata") {
		o.Metadata = []byte(c.String("metadata"))
	}
	if c.Bool("if-none-match") {
		o.IfNoneMatch = "*"
	}
	m, err := cl.Put(c.Context, c.String("namespace"), key, body, o)
	if err != nil {
		return fmt.Errorf("put %s: %w", printable(key), err)
	}
	return r.written("put", key, m, asJSON)
}

// valueBody is the value that the command line describes.
func (r *run) valueBody(c *ucli.Context) (client.Body, error) {
	if !c.IsSet("file") {
		value := c.Args().Get(1)
		if value != "-" {
			return client.BytesBody([]byte(value)), nil
		}
		return client.Body{Size: -1, Once: true, Open: func() (io.ReadCloser, error) { return io.NopCloser(r.In), nil }}, nil
	}
	path := c.String("file")
	st, err := os.Stat(path)
	if err != nil {
		return client.Body{}, err
	}
	b := client.Body{Size: st.Size(), Open: func() (io.ReadCloser, error) { return os.Open(path) }}
	switch {
	case st.IsDir():
		return b, fmt.Errorf(`%s is a directory; "kvmesh import" takes directories`, path)
	case !st.Mode().IsRegular(): // a pipe or a device: no size, and it cannot be read twice
		b.Size, b.Once = -1, true
	}
	return b, nil
}

// quoteETag lets people leave out the quotes that are part of an ETag, and that shells eat.
func quoteETag(tag string) string {
	if tag == "" || tag == "*" || tag[0] == '"' || len(tag) > 1 && tag[:2] == "W/" {
		return tag
	}
	return `"` + tag + `"`
}

// written reports an acknowledged write.
func (r *run) written(verb, key string, m *client.Meta, asJSON bool) error {
	if asJSON {
		return r.printJSON(struct {
			Key      string `json:"key"`
			Revision uint64 `json:"revision"`
			ETag     string `json:"etag,omitempty"`
			Bookmark string `json:"bookmark,omitempty"`
		}{key, m.Revision, m.ETag, m.Bookmark})
	}
	if m.Revision == 0 { // a delete of a key that was not there
		return r.printf("%s %s: nothing to change\n", verb, printable(key))
	}
	return r.printf("%s %s: revision %d\n", verb, printable(key), m.Revision)
}
