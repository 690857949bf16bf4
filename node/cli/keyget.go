package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) keyGet() *ucli.Command {
	return &ucli.Command{
		Name:        "get",
		Usage:       "read one key",
		ArgsUsage:   "KEY",
		Description: "Writes the value as it is. With -o json: what the node says about it too, and the value in base64.",
		Flags: clientFlags(
			&ucli.StringFlag{Name: "out", Usage: "write the value to `FILE`, which is replaced only once all of it has come"},
			&ucli.StringFlag{Name: "cache-ttl", Usage: "`SECONDS` that a cached answer may be old (default: the node's, 60)"},
			namespaceFlag(),
		),
		Action: r.action(1, "KEY", r.get),
	}
}

func (r *run) get(c *ucli.Context, cl *client.Client, asJSON bool) error {
	key, out := c.Args().First(), c.String("out")
	if asJSON && out != "" {
		return usagef("use --out or -o json, not both")
	}
	obj, err := cl.Get(c.Context, c.String("namespace"), key, client.GetOptions{CacheTTL: c.String("cache-ttl")})
	if err != nil {
		return fmt.Errorf("get %s: %w", printable(key), err)
	}
	switch {
	case asJSON:
		err = r.getJSON(key, obj)
	case out != "":
		err = saveTo(out, obj.Body)
	default:
		_, err = io.Copy(r.Out, obj.Body)
	}
	if err = errors.Join(err, obj.Body.Close()); err != nil {
		return fmt.Errorf("get %s: %w", printable(key), err)
	}
	return nil
}

func (r *run) getJSON(key string, obj *client.Object) error {
	value, err := io.ReadAll(io.LimitReader(obj.Body, kv.MaxValueBytes+1))
	if err != nil {
		return err
	}
	if len(value) > kv.MaxValueBytes {
		return fmt.Errorf("the value has more than %d bytes, which no kvmesh value has", kv.MaxValueBytes)
	}
	obj.Size = int64(len(value))
	return r.printJSON(struct {
		Key string `json:"key"`
		client.Meta
		Value []byte `json:"value"`
	}{key, obj.Meta, value})
}

// saveTo replaces the file at path once all of src has come.
func saveTo(path string, src io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".kvmesh-get-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, src)
	// A temporary file is its owner's alone; the result is to be what a plain redirection would make on most systems.
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
