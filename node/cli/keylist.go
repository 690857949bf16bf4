package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) keyList() *ucli.Command {
	return &ucli.Command{
		Name:        "list",
		Usage:       "list keys",
		Description: "Lists all pages, in the order of the names' bytes.",
		Flags: clientFlags(
			&ucli.StringFlag{Name: "prefix", Usage: "only keys that begin with `TEXT`"},
			&ucli.StringFlag{Name: "delimiter", Usage: "show keys that share the part up to the next `TEXT` as one group"},
			&ucli.IntFlag{Name: "limit", Usage: "stop after `N` keys and groups", DefaultText: "all"},
			&ucli.StringFlag{Name: "cursor", Usage: "go on where an earlier listing with a --limit stopped"},
			&ucli.BoolFlag{
				Name: "values", Usage: "with -o json: the values too, in base64, up to 64 KiB each", DisableDefaultText: true,
			},
			namespaceFlag(),
		),
		Action: r.action(0, "no arguments", r.list),
	}
}

// keySink takes a listing page by page.
type keySink interface {
	page(*client.Page) error
	// end takes the cursor at which the listing stopped; empty when it is complete.
	end(cursor string) error
}

func (r *run) list(c *ucli.Context, cl *client.Client, asJSON bool) error {
	limit := c.Int("limit")
	if limit < 0 {
		return usagef("--limit is %d; use 1 or more", limit)
	}
	o := client.ListOptions{
		Prefix: c.String("prefix"), Delimiter: c.String("delimiter"), Cursor: c.String("cursor"),
		Values: c.Bool("values") && asJSON,
	}
	var sink keySink = &keyTable{run: r, now: time.Now()}
	if asJSON {
		sink = &keyJSON{w: r.Out}
	}
	for left := limit; ; {
		if limit > 0 {
			o.Limit = min(left, kv.MaxListLimit)
		}
		page, err := cl.List(c.Context, c.String("namespace"), o)
		if err != nil {
			return err
		}
		if err := sink.page(page); err != nil {
			return err
		}
		left -= len(page.Keys) + len(page.Prefixes)
		if page.Complete || (limit > 0 && left <= 0) {
			return sink.end(page.Cursor)
		}
		o.Cursor = page.Cursor
	}
}

// maxShownMetadata is how much of the metadata a table shows, in characters.
const maxShownMetadata = 40

// keyTable prints each page as it comes, so that a listing of any length takes the memory of one page.
type keyTable struct {
	run    *run
	now    time.Time
	headed bool
}

func (k *keyTable) page(p *client.Page) error {
	if len(p.Keys)+len(p.Prefixes) == 0 {
		return nil
	}
	t := newTable()
	if !k.headed {
		t.AppendHeader(table.Row{"KEY", "SIZE", "REVISION", "EXPIRES", "METADATA"})
		k.headed = true
	}
	for _, prefix := range p.Prefixes {
		t.AppendRow(table.Row{printable(prefix) + " …", "", "", "", ""})
	}
	for _, key := range p.Keys {
		expires := "never"
		if key.Expiration != 0 {
			expires = "in " + humanDuration(max(key.ExpiresIn(k.now), 0))
		}
		metadata := ""
		if len(key.Metadata) > 0 && string(key.Metadata) != "null" {
			metadata = printable(shorten(string(key.Metadata), maxShownMetadata))
		}
		t.AppendRow(table.Row{printable(key.Name), humanBytes(key.Size), strconv.FormatUint(key.Revision, 10), expires, metadata})
	}
	return k.run.printf("%s\n", t.Render())
}

func (k *keyTable) end(cursor string) error {
	if cursor != "" {
		k.run.printErr("there are more keys; go on with --cursor " + cursor)
	}
	return nil
}

// keyJSON prints one document as the pages come, a key a line: {"keys":[…],"prefixes":[…],"list_complete":…,"cursor":…}.
type keyJSON struct {
	w        io.Writer
	begun    bool
	prefixes []string // groups come after the keys in the document; there are far fewer of them
}

func (k *keyJSON) page(p *client.Page) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b) // one line a value
	enc.SetEscapeHTML(false)
	for _, key := range p.Keys {
		if k.begun {
			b.WriteByte(',')
		} else {
			b.WriteString("{\"keys\":[\n")
		}
		k.begun = true
		if err := enc.Encode(key); err != nil {
			return err
		}
	}
	k.prefixes = append(k.prefixes, p.Prefixes...)
	_, err := k.w.Write(b.Bytes())
	return err
}

func (k *keyJSON) end(cursor string) error {
	var b bytes.Buffer
	if !k.begun {
		b.WriteString("{\"keys\":[\n")
	}
	tail := struct {
		Prefixes []string `json:"prefixes,omitempty"`
		Complete bool     `json:"list_complete"`
		Cursor   string   `json:"cursor,omitempty"`
	}{k.prefixes, cursor == "", cursor}
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteString("],")
	mark := b.Len()
	if err := enc.Encode(tail); err != nil {
		return err
	}
	out := append(b.Bytes()[:mark:mark], b.Bytes()[mark+1:]...) // without the brace that opens the tail
	_, err := k.w.Write(out)
	return err
}
