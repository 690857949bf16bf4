package cli

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node/cfbind"
	"kvmesh/node/cli/client"
)

func (r *run) workerConfigCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "worker-config",
		Usage: "print what binds a Worker to a namespace: a file for workerd to import, and Miniflare's options",
		Flags: clientFlags(
			namespaceFlag(),
			&ucli.StringFlag{Name: "binding", Value: "KV", Usage: "`NAME` under which the Worker sees it: env.NAME"},
		),
		Action: r.action(0, "no arguments", r.workerConfig),
	}
}

// bindingName is what can stand behind "env." in JavaScript.
var bindingName = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$]*$`)

// workerBinding is one KV binding of a Worker.
type workerBinding struct {
	name    string
	ns      client.Namespace
	base    *url.URL // of the node
	headers [][2]string
	trusted []string // certificates to trust, in PEM; none = those that browsers trust
}

func (r *run) workerConfig(c *ucli.Context, cl *client.Client, asJSON bool) error {
	b := workerBinding{name: c.String("binding")}
	if !bindingName.MatchString(b.name) {
		return usagef("--binding %s: it becomes env.NAME in the Worker, so it takes letters, digits, _ and $", printable(b.name))
	}
	var err error
	if b.base, err = url.Parse(cl.URL()); err != nil {
		return usagef("--url: %v", err)
	}
	if _, b.trusted, err = r.roots(c); err != nil {
		return err
	}
	if b.ns, err = cl.Namespace(c.Context, c.String("namespace")); err != nil {
		return err
	}
	// The id, because it stays when the namespace is given another title.
	b.headers = [][2]string{{"Kv-Namespace", b.ns.ID}}
	if path := r.fromEnv(c, "token-file", "TOKEN_FILE"); path != "" {
		token, err := readToken(path)
		if err != nil {
			return usagef("--token-file: %v", err)
		}
		b.headers = append(b.headers, [2]string{"Authorization", "Bearer " + token})
	}
	if asJSON {
		return r.printJSON(map[string]any{"workerd": b.workerd(), "miniflare": b.miniflare()})
	}
	return r.printf("%s", b.workerd())
}

// address is the node's host and port.
func (b *workerBinding) address() string {
	port := b.base.Port()
	if port == "" {
		port = "80"
		if b.base.Scheme == "https" {
			port = "443"
		}
	}
	return net.JoinHostPort(b.base.Hostname(), port)
}

// remote is the URL of Miniflare's remote form.
func (b *workerBinding) remote() string {
	return (&url.URL{Scheme: b.base.Scheme, Host: b.base.Host, Path: cfbind.MiniflarePath + b.ns.ID}).String()
}

// miniflare is what goes into Miniflare's options; its URL has to be made a URL.
func (b *workerBinding) miniflare() map[string]any {
	return map[string]any{"kvNamespaces": map[string]any{b.name: map[string]any{
		"id": b.ns.ID, "remoteProxyConnectionString": b.remote(),
	}}}
}

// workerd is a file of Cap'n Proto that workerd can import.
func (b *workerBinding) workerd() string {
	var headers []string
	for _, h := range b.headers {
		headers = append(headers, fmt.Sprintf("(name = %s, value = %s)", capnpText(h[0]), capnpText(h[1])))
	}
	options := "(style = host, injectRequestHeaders = [\n      " + strings.Join(headers, ",\n      ") + "])"
	protocol := "http = " + options
	if b.base.Scheme == "https" {
		trust := "trustBrowserCas = true"
		if len(b.trusted) > 0 {
			texts := make([]string, len(b.trusted))
			for i, text := range b.trusted {
				texts[i] = capnpText(text)
			}
			trust += ",\n      trustedCertificates = [" + strings.Join(texts, ", ") + "]"
		}
		protocol = "https = (\n    options = " + options +
			",\n    tlsOptions = (" + trust + "), certificateHost = " + capnpText(b.base.Hostname()) + ")"
	}
	// Names that are different for every namespace, node and binding, so that one configuration may import several files.
	service := "kvmesh " + b.ns.ID + " at " + b.address()
	sum := sha256.Sum256([]byte(service + " as " + b.name))
	file := binary.BigEndian.Uint64(sum[:8]) | 1<<63 // as Cap'n Proto demands of a file's id
	secret := ""
	if len(b.headers) > 1 {
		secret = "\n# It holds the token: keep it where only workerd can read it."
	}
	return fmt.Sprintf(`# The namespace %[1]s of a kvmesh, as a Worker's env.%[2]s.%[3]s
#
# In the configuration of workerd:
#   using Kv = import "FILE.capnp";      this file
#   services = [ …, Kv.service ]         of the Workerd.Config
#   bindings = [ …, Kv.binding ]         of the Workerd.Worker
#
# In the options of Miniflare, also those that Vitest hands to it (Miniflare cannot send a token):
#   kvNamespaces: { %[2]s: {
#     id: %[4]s,
#     remoteProxyConnectionString: new URL(%[5]s) } }
@%#[6]x;
using Workerd = import "/workerd/workerd.capnp";

const service :Workerd.Service = (
  name = %[7]s,
  external = (address = %[8]s, %[9]s));

const binding :Workerd.Worker.Binding = (name = %[10]s, kvNamespace = %[7]s);
`,
		printable(b.ns.Title), b.name, secret, jsText(b.ns.ID), jsText(b.remote()),
		file, capnpText(service), capnpText(b.address()), protocol, capnpText(b.name))
}

// capnpText is a text of Cap'n Proto. What it is made of here is printable ASCII and line feeds.
func capnpText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// jsText is a text of JavaScript, as JSON has it.
func jsText(s string) string {
	b, err := json.Marshal(s)
	if err != nil { // not for strings
		return `""`
	}
	return string(b)
}
