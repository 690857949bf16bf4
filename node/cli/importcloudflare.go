package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	ucli "github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

// fetchAttempts is how often a value is asked for whose answer breaks off.
const fetchAttempts = 5

// importCloudflare copies a namespace out of a server of the Workers KV REST API.
func (r *run) importCloudflare(c *ucli.Context) error {
	if c.NArg() > 0 || c.IsSet("format") {
		return usagef("--from-cloudflare is the source; there is no other, and no --format")
	}
	for _, name := range []string{"account", "namespace-id"} {
		if c.String(name) == "" {
			return usagef("--from-cloudflare needs --%s", name)
		}
	}
	token, err := r.apiToken(c)
	if err != nil {
		return err
	}
	roots, _, err := r.roots(c)
	if err != nil {
		return err
	}
	cl, ns, j, err := r.transferSetup(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	account, id := c.String("account"), c.String("namespace-id")
	cf, err := client.NewCloudflare(client.CloudflareOptions{
		URL: c.String("from-cloudflare"), Account: account, Namespace: id, Token: token, Parallel: c.Int("parallel") + 1, RootCAs: roots,
	})
	if err != nil {
		return usagef("--from-cloudflare: %v", err)
	}
	defer cf.Close()
	j, err = r.importJob(c, j, ns, "kvmesh-import-"+strings.Map(fileSafe, id),
		stateArg{"--from-cloudflare", cf.URL()}, stateArg{"--account", account}, stateArg{"--namespace-id", id})
	if err != nil {
		return err
	}
	im := &cloudImporter{
		valueSink: newValueSink(cl, c), cf: cf, prefix: c.String("prefix"), only: c.String("only"), before: j.before, parallel: c.Int("parallel"),
	}
	j.build = func(rep *report) transfer {
		im.rep = rep
		return im.transfer(c.Int("parallel"), im.find)
	}
	return r.runTransfer(c, j)
}

// fileSafe keeps what every file system takes in a name.
func fileSafe(c rune) rune {
	if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' {
		return c
	}
	return '-'
}

// apiToken is the token of the other server; empty: none.
func (r *run) apiToken(c *ucli.Context) (string, error) {
	if path := c.String("api-token-file"); path != "" {
		token, err := readToken(path)
		if err != nil {
			return "", usagef("--api-token-file: %v", err)
		}
		return token, nil
	}
	token, _ := r.Env("CLOUDFLARE_API_TOKEN")
	token = strings.TrimSpace(token)
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usagef("CLOUDFLARE_API_TOKEN holds blanks or characters outside ASCII, which a header cannot carry")
	}
	return token, nil
}

// cloudImporter is one copy of a namespace of another server. The listing gives names, metadata and expirations; values are
// fetched one by one, as the bytes they are.
type cloudImporter struct {
	*valueSink
	cf           *client.Cloudflare
	prefix, only string
	before       *state
	parallel     int
	rep          *report
}

func (im *cloudImporter) find(ctx context.Context, emit func(item) error) error {
	group, ctx := errgroup.WithContext(ctx)
	keys := make(chan item, im.parallel)
	group.Go(func() error {
		defer close(keys)
		return im.list(ctx, keys)
	})
	for range im.parallel {
		group.Go(func() error {
			for it := range keys {
				if err := im.fetch(ctx, it, emit); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// list enters all keys that are due into the ledger and hands them on.
func (im *cloudImporter) list(ctx context.Context, keys chan<- item) error {
	last := ""
	for page, err := range im.cf.Pages(ctx, im.only) {
		if err != nil {
			return denied(err)
		}
		for _, k := range page {
			if k.Name <= last { // the marks are compared
				return fmt.Errorf("the server listed %q after %q, which is not in the order of bytes", k.Name, last)
			}
			last = k.Name
			due, again := im.rep.led.due(k.Name, im.before == nil || !im.before.Begun || k.Name > string(im.before.Mark))
			if !due {
				continue
			}
			it := item{key: im.prefix + k.Name, mark: k.Name, again: again, entry: manifestEntry{Expiration: k.Expiration}}
			if err := im.rep.begin(ctx, &it); err != nil {
				return err
			}
			if err := im.check(&it, k); err != nil {
				if err := im.rep.moved(ctx, it, 0, err); err != nil {
					return err
				}
				continue
			}
			select {
			case keys <- it:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// check looks whether the mesh can have the key.
func (im *cloudImporter) check(it *item, k client.CloudflareKey) error {
	if len(k.Metadata) > 0 && string(k.Metadata) != "null" {
		var err error
		if it.entry.Metadata, err = compacted(k.Metadata); err != nil {
			return err
		}
	}
	return kv.ValidateKey(it.key)
}

// fetch reads the value of a key and hands it on.
func (im *cloudImporter) fetch(ctx context.Context, it item, emit func(item) error) error {
	err := im.value(ctx, &it)
	switch foreign := new(client.ForeignError); {
	case err == nil:
		return emit(it)
	case errors.As(err, &foreign) && foreign.KeyNotFound():
		err = errSkipped // deleted or expired since it was listed
	case errors.As(err, &foreign) && foreign.Denied(): // and so would all others be
		return denied(fmt.Errorf("key %s: %w", printable(it.mark), err))
	}
	return im.rep.moved(ctx, it, 0, err)
}

// value reads the value into the item, again where its answer breaks off.
func (im *cloudImporter) value(ctx context.Context, it *item) error {
	for attempt := 1; ; attempt++ {
		body, size, err := im.cf.Get(ctx, it.mark)
		if err != nil {
			return err
		}
		it.value, err = im.read(ctx, body, size, it)
		if err = errors.Join(err, body.Close()); err == nil {
			return nil
		}
		if it.settled != nil { // what it had taken it takes again, or has no use for
			it.settled()
			it.settled = nil
		}
		if limit := new(kv.Error); errors.As(err, &limit) || ctx.Err() != nil {
			return err
		}
		if attempt == fetchAttempts {
			return fmt.Errorf("the value broke off, %d times: %w", attempt, err)
		}
	}
}

// read takes from the budget what the value costs before more than its beginning is read.
func (im *cloudImporter) read(ctx context.Context, body io.Reader, size int64, it *item) ([]byte, error) {
	var value []byte
	if size < 0 { // the server does not tell
		begin, err := io.ReadAll(io.LimitReader(body, smallFile))
		if err != nil {
			return nil, err
		}
		value, size = begin, int64(len(begin))
		if size == smallFile {
			size = kv.MaxValueBytes
		}
	}
	if it.size = size; size > kv.MaxValueBytes {
		return nil, tooLarge(fmt.Sprintf("%d bytes", size))
	}
	if err := im.hold(ctx, it); err != nil {
		return nil, err
	}
	if value == nil {
		value = make([]byte, size)
		_, err := io.ReadFull(body, value)
		return value, err
	}
	buf := bytes.NewBuffer(value)
	_, err := io.Copy(buf, io.LimitReader(body, kv.MaxValueBytes+1-int64(len(value))))
	if it.size = int64(buf.Len()); err == nil && it.size > kv.MaxValueBytes {
		err = tooLarge(fmt.Sprintf("more than %d bytes", kv.MaxValueBytes))
	}
	return buf.Bytes(), err
}

// denied adds what can be done about a token that is not taken.
func denied(err error) error {
	var e *client.ForeignError
	if errors.As(err, &e) && e.Denied() {
		return fmt.Errorf("%w\n  Name the file that holds that server's API token with --api-token-file, or set CLOUDFLARE_API_TOKEN", err)
	}
	return err
}
