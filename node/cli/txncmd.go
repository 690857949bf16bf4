package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
)

// maxTxnFile bounds the document of a transaction in memory: as much as a node takes.
const maxTxnFile = 100_000_000

func (r *run) txnCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "txn",
		Usage:     "change several keys, all of them or none",
		ArgsUsage: "FILE | -",
		Description: `The file, or standard input for -, is a JSON document: {"compare": [{"namespace": "default", "key": "a", "revision": 7}], ` +
			`"put": [{"namespace": "default", "key": "a", "value": "…"}], "delete": [{"namespace": "default", "key": "b"}]}. ` +
			"A comparison has one of revision (0: the key does not exist), exists and etag. When one does not hold, nothing is " +
			"written, each that does not is named, and the exit code is 1.",
		Flags:  clientFlags(),
		Action: r.action(1, "FILE or -", r.txn),
	}
}

func (r *run) txn(c *ucli.Context, cl *client.Client, asJSON bool) error {
	doc, err := r.document(c.Args().First())
	if err != nil {
		return err
	}
	res, err := cl.Txn(c.Context, client.BytesBody(doc))
	var conflict *client.ConflictError
	switch {
	case errors.As(err, &conflict):
		return r.conflicts(conflict, asJSON)
	case err != nil:
		return fmt.Errorf("txn: %w", err)
	case asJSON:
		return r.printJSON(res)
	case res.Revision == 0:
		return r.printf("txn: nothing to change\n")
	}
	for _, list := range []struct {
		verb  string
		items []client.TxnItem
	}{{"put", res.Put}, {"delete", res.Delete}} {
		for _, it := range list.items {
			now := fmt.Sprintf("revision %d", it.Revision)
			if it.Revision == 0 {
				now = "nothing to change"
			}
			if err := r.printf("%s %s in %s: %s\n", list.verb, printable(it.Key), printable(it.Namespace), now); err != nil {
				return err
			}
		}
	}
	return nil
}

// conflicts names the comparisons that do not hold.
func (r *run) conflicts(e *client.ConflictError, asJSON bool) error {
	if asJSON {
		err := r.printJSON(struct {
			Conflicts []client.TxnItem `json:"conflicts"`
			Bookmark  string           `json:"bookmark"`
		}{e.Conflicts, e.Bookmark})
		if err != nil {
			return err
		}
	}
	for _, it := range e.Conflicts {
		now := fmt.Sprintf("is at revision %d", it.Revision)
		if it.Revision == 0 {
			now = "does not exist"
		}
		r.printErr(fmt.Sprintf("txn: %s in %s %s", printable(it.Key), printable(it.Namespace), now))
	}
	return fmt.Errorf("txn: %w", e)
}

// document reads a file, or standard input.
func (r *run) document(path string) (_ []byte, err error) {
	in := r.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxTxnFile+1))
	if len(b) > maxTxnFile {
		err = fmt.Errorf("%s has more than %d bytes, which no transaction has", path, maxTxnFile)
	}
	return b, err
}
