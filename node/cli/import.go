package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

func (r *run) importCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "import",
		Usage:     "write files, or a namespace of Cloudflare's, to a namespace",
		ArgsUsage: "DIR | FILE | -     or     --from-cloudflare BASE_URL --account ID --namespace-id ID",
		Description: "dir: every file below DIR; its path, with slashes, is the key. A manifest left by export gives the keys of files that " +
			"could not have their own name, metadata and expirations. Links and special files are refused.\n" +
			"ndjson: FILE, or standard input for -, has an object a line: key, value (text, or base64 with \"base64\": true), metadata, " +
			"expiration (unix seconds) or expiration_ttl (seconds).\n" +
			"wrangler: an array of such objects, as \"wrangler kv bulk put\" takes it.\n" +
			"--from-cloudflare copies a namespace, with metadata and expirations, out of any server of the Workers KV REST API; its API " +
			"token comes from --api-token-file or CLOUDFLARE_API_TOKEN.\n" +
			"What fails is named, does not stop the rest, and makes the exit code 1. How far an import has come is kept beside its source, in " +
			"DIR.kvmesh-import or FILE.kvmesh-import (--from-cloudflare: in kvmesh-import-ID of the current directory), until it is whole; " +
			"--resume goes on there, with the same arguments. At most the last second is done again.",
		Flags: transferFlags(
			&ucli.StringFlag{Name: "format", Usage: "`FORMAT` of the source: dir, ndjson or wrangler", DefaultText: "dir for a directory"},
			&ucli.StringFlag{Name: "prefix", Usage: "put `TEXT` before every key"},
			&ucli.StringFlag{Name: "only", Usage: "only keys that begin with `TEXT` in the source"},
			&ucli.StringFlag{Name: "state", Usage: "keep in `PATH` how far it has come"},
			&ucli.StringFlag{Name: "from-cloudflare", Usage: "copy out of the API at `BASE_URL`, for example https://api.cloudflare.com/client/v4"},
			&ucli.StringFlag{Name: "account", Usage: "`ID` of the account there"},
			&ucli.StringFlag{Name: "namespace-id", Usage: "`ID` of the namespace there"},
			&ucli.StringFlag{Name: "api-token-file", Usage: "`FILE` with the API token of that server [$CLOUDFLARE_API_TOKEN]"},
			retryUnknownFlag(),
		),
		Action: func(c *ucli.Context) error {
			if c.IsSet("from-cloudflare") {
				return r.importCloudflare(c)
			}
			for _, name := range []string{"account", "namespace-id", "api-token-file"} {
				if c.IsSet(name) {
					return usagef("--%s is for --from-cloudflare only", name)
				}
			}
			if err := exactly(c, 1, "DIR, FILE or -"); err != nil {
				return err
			}
			if err := checkParallel(c); err != nil {
				return err
			}
			format, err := importFormat(c.String("format"), c.Args().First())
			switch {
			case err != nil:
				return err
			case format == formatDir:
				return r.importDir(c)
			}
			return r.importStream(c, format)
		},
	}
}

// The formats of imports and exports.
const (
	formatDir      = "dir"
	formatNDJSON   = "ndjson"
	formatWrangler = "wrangler"
)

// stdStream is how the command line names standard input or output.
const stdStream = "-"

// importFormat finds out what the source is.
func importFormat(format, source string) (string, error) {
	switch format {
	case "", formatDir:
	case formatNDJSON, formatWrangler:
		return format, nil
	default:
		return "", usagef("--format %s is unknown; use dir, ndjson or wrangler", format)
	}
	if source != stdStream {
		info, err := os.Stat(source)
		if err != nil || info.IsDir() {
			return formatDir, err
		}
	}
	if format == formatDir {
		return "", usagef("%s is no directory; use --format ndjson or wrangler", source)
	}
	return "", usagef("what is in %s? Say --format ndjson (an object a line) or --format wrangler (an array)", source)
}

// importJob makes what all imports share: source says what is imported, as args that must be the same when it goes on.
func (r *run) importJob(c *ucli.Context, j job, ns client.Namespace, statePath string, source ...stateArg) (job, error) {
	j.verb, j.noun = "import", "keys"
	if c.IsSet("state") {
		statePath = c.String("state")
	}
	j.keep = keeper{path: statePath, args: append(source,
		stateArg{"--namespace (its id)", ns.ID}, stateArg{"--prefix", c.String("prefix")}, stateArg{"--only", c.String("only")})}
	if !c.Bool("resume") {
		return j, nil
	}
	if statePath == "" {
		return j, usagef("--resume: how far an import of standard input has come is kept only where --state says")
	}
	var err error
	j.before, err = j.keep.load()
	return j, err
}

func (r *run) importDir(c *ucli.Context) error {
	cl, ns, j, err := r.transferSetup(c)
	if err != nil {
		return err
	}
	defer cl.Close()
	dir := c.Args().First()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // it was only read
	if info, err := root.Lstat(exportDir); err == nil && info.IsDir() {
		return fmt.Errorf("%s holds an export that is not whole; go on with it: kvmesh export --resume %s", dir, dir)
	}
	entries, err := readManifest(root)
	if err != nil {
		return err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if j, err = r.importJob(c, j, ns, abs+stateSuffix, stateArg{"the source", abs}, stateArg{"--format", formatDir}); err != nil {
		return err
	}
	j.noun = "files"
	im := &importer{
		sink: newSink(cl, c), root: root, prefix: c.String("prefix"), only: c.String("only"), entries: entries, before: j.before,
	}
	j.build = func(rep *report) transfer {
		im.rep = rep
		return transfer{
			parallel: c.Int("parallel"), count: im.count, find: im.find, move: im.move, small: im.small, moveMany: im.moveMany,
		}
	}
	return r.runTransfer(c, j)
}

// sink is where imports write to.
type sink struct {
	client       *client.Client
	namespace    string
	retryUnknown bool // writes of which nobody knows whether they were carried out are repeated
}

func newSink(cl *client.Client, c *ucli.Context) sink {
	return sink{client: cl, namespace: c.String("namespace"), retryUnknown: c.Bool("retry-unknown")}
}

// importer is one import of a directory.
type importer struct {
	sink
	root         *os.Root
	prefix, only string
	entries      map[string]manifestEntry // of the manifest, by file; those found are taken out
	before       *state
	rep          *report
}

// find walks the tree. What cannot be imported is reported by name.
func (im *importer) find(ctx context.Context, emit func(item) error) error {
	err := fs.WalkDir(im.root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			it := item{file: file, mark: file, again: !im.ahead(file)}
			if failed := im.failed(ctx, it, pathless(err)); failed != nil {
				return failed
			}
			if d != nil && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() || file == manifestName:
			return nil
		}
		due, again := im.rep.led.due(file, im.ahead(file))
		it, err := im.item(file, d)
		it.file, it.mark, it.again = file, file, again
		switch {
		case !due || it.left:
			im.rep.prog.done(it.size)
			return nil
		case err != nil:
			return im.failed(ctx, it, err)
		}
		if err := im.rep.begin(ctx, &it); err != nil {
			return err
		}
		return emit(it)
	})
	if err != nil {
		return err
	}
	for _, file := range slices.Sorted(maps.Keys(im.entries)) {
		if err := im.rep.fail(item{file: file}, errors.New("is in the manifest, but not in the directory")); err != nil {
			return err
		}
	}
	return nil
}

// ahead says whether the walk comes to a file after the one that an earlier run has reached.
func (im *importer) ahead(file string) bool {
	return im.before == nil || !im.before.Begun || walkOrder(file) > walkOrder(string(im.before.Mark))
}

// walkOrder is a string by which paths compare in the order of a walk, which goes part by part.
func walkOrder(file string) string { return strings.ReplaceAll(file, "/", "\x00") }

// failed notes a file that cannot be imported.
func (im *importer) failed(ctx context.Context, it item, err error) error {
	if err := im.rep.begin(ctx, &it); err != nil {
		return err
	}
	return im.rep.moved(ctx, it, 0, err)
}

// count walks the tree for the totals of the progress. What goes wrong here goes wrong in find too, which reports it.
func (im *importer) count(ctx context.Context, found func(int64)) {
	_ = fs.WalkDir(im.root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && d != nil && d.IsDir():
			return fs.SkipDir
		case err != nil || !d.Type().IsRegular() || file == manifestName:
			return nil
		}
		if info, err := d.Info(); err == nil {
			found(info.Size())
		}
		return nil
	})
}

// item is the file as it is to be imported.
func (im *importer) item(file string, d fs.DirEntry) (item, error) {
	e, listed := im.entries[file]
	delete(im.entries, file)
	if !listed {
		e = manifestEntry{File: file}
	}
	if kind := d.Type(); kind != 0 {
		what := "a special file"
		if kind&fs.ModeSymlink != 0 {
			what = "a symbolic link"
		}
		return item{}, fmt.Errorf("is %s, which no key can hold; leave it out, or copy what it stands for", what)
	}
	info, err := d.Info()
	if err != nil {
		return item{}, pathless(err)
	}
	it := item{key: im.prefix + e.key(), file: file, size: info.Size(), entry: e, info: info}
	if it.left = !strings.HasPrefix(e.key(), im.only); it.left {
		return it, nil
	}
	return it, kv.ValidateKey(it.key)
}

// move writes one file.
func (im *importer) move(ctx context.Context, it item) (int64, error) {
	o := client.PutOptions{Metadata: it.entry.Metadata}
	if it.entry.Expiration != 0 {
		o.Expiration = strconv.FormatInt(it.entry.Expiration, 10)
	}
	body := client.Body{Size: it.size, Open: func() (io.ReadCloser, error) { return im.open(it) }}
	_, err := im.client.Put(ctx, im.namespace, it.key, body, o)
	if hasExpired(it, err) {
		return 0, errSkipped
	}
	return it.size, err
}

// clockSlack is how far the clock here may be behind mesh time.
const clockSlack = time.Hour

// hasExpired says whether a write was refused because its time is up, by mesh time: then it does not exist any more. What no
// clock would take for passed is a mistake.
func hasExpired(it item, err error) bool {
	at := it.entry.Expiration
	return client.CodeOf(err) == kv.CodeInvalidExpiration && it.ttl == 0 && at > 0 && at <= time.Now().Add(clockSlack).Unix()
}

// open opens the very file that the walk found: a link that has taken its place is not followed.
func (im *importer) open(it item) (io.ReadCloser, error) {
	f, err := im.root.Open(filepath.FromSlash(it.file))
	if err != nil {
		return nil, pathless(err)
	}
	info, err := f.Stat()
	if err == nil && !os.SameFile(info, it.info) {
		err = errors.New("was replaced while the import ran")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// pathless takes the path out of an error of the file system, where the path is printed anyway.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
