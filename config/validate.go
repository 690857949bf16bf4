package config

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Limits of names and sizes.
const (
	// maxNameBytes bounds name and region: both travel in the gossip metadata of every node, which has 512 bytes.
	maxNameBytes = 64
	// maxBootstrapExpect is the most voters a mesh starts with: every write waits for a majority of them.
	maxBootstrapExpect = 7
	// minCacheSize is the least a cache can work in: its parts for small, large and absent entries need a MiB or more each.
	minCacheSize = 8 * MiB
)

// Validate reports everything that keeps a node from being started with c, as one Problems error: each with the
// setting's name and what to do about it. It looks at the values alone, not at the files they name.
func (c Config) Validate() error { return c.problems().err() }

func (c Config) problems() Problems {
	var ps Problems
	c.checkNode(&ps)
	c.checkListen(&ps)
	c.checkMesh(&ps)
	c.checkRest(&ps)
	return ps
}

func (c Config) checkNode(ps *Problems) {
	checkName(ps, "name", c.Node.Name)
	checkName(ps, "region", c.Node.Region)
	switch c.Node.Role {
	case RoleVoter, RoleLearner, RoleEdge:
	default:
		ps.add("role", "use voter, learner or edge", "%q is no role", c.Node.Role)
	}
	if c.Node.DataDir == "" {
		ps.add("data-dir", "name a directory that survives a restart", "is empty")
	}
}

func checkName(ps *Problems, key, v string) {
	switch {
	case v == "":
		ps.add(key, "give one of 1 to "+strconv.Itoa(maxNameBytes)+" bytes", "is empty")
	case len(v) > maxNameBytes:
		ps.add(key, "choose a shorter one", "has %d bytes; the limit is %d", len(v), maxNameBytes)
	case !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }):
		ps.add(key, "use letters, digits, - and .", "%q has spaces or unprintable characters", v)
	}
}

func (c Config) checkListen(ps *Problems) {
	listeners := []struct{ key, addr string }{
		{"http", c.Listen.HTTP}, {"peer", c.Listen.Peer}, {"gossip", c.Listen.Gossip}, {"admin", c.Listen.Admin},
	}
	usedBy, everywhere := map[string]string{}, ""
	for _, l := range listeners {
		host, port, msg := splitAddress(l.addr)
		if msg != "" {
			ps.add(l.key, "write host:port, for example 127.0.0.1:8580", "%q %s", l.addr, msg)
			continue
		}
		if IsWildcard(host) && everywhere == "" {
			everywhere = l.key
		}
		if first, taken := usedBy[port]; taken && port != "0" {
			ps.add(l.key, "give it another port", "port %s is that of --%s too", port, first)
		}
		usedBy[port] = l.key
	}
	switch a := c.Listen.Advertise; {
	case a == "" && everywhere != "":
		ps.add("advertise", "add --advertise HOST, the address at which the other nodes reach this one",
			"is required, because --%s listens on all interfaces", everywhere)
	case a != "" && IsWildcard(a):
		ps.add("advertise", "use the address at which the other nodes reach this one",
			"%q is not an address anybody can connect to", a)
	case a != "" && !isHost(a):
		ps.add("advertise", "write a host name or an IP address, without scheme and port", "%q is not a host", a)
	}
	switch cert, key := c.Listen.HTTPCert, c.Listen.HTTPKey; {
	case cert != "" && key == "":
		ps.add("http-key", "add --http-key FILE with the private key of the certificate, or leave --http-cert out to speak HTTP in clear",
			"is missing, but --http-cert is %s", cert)
	case cert == "" && key != "":
		ps.add("http-cert", "add --http-cert FILE with the certificate of the key and its chain, or leave --http-key out to speak HTTP in clear",
			"is missing, but --http-key is given")
	case strings.Contains(key, "-----BEGIN"):
		ps.add("http-key", "write the key into a file that only this user can read, and name the file",
			"is the key itself, which everybody on this machine can see now, and not the name of a file")
	}
	host, _, msg := splitAddress(c.Listen.HTTP)
	if msg == "" && !isLoopback(host) && c.API.TokenFile == "" && !c.API.OpenHTTP {
		ps.add("http", "add --api-token-file FILE, or --open-http if everybody who reaches the port may read and write",
			"%s is not a loopback address, and no token protects it", c.Listen.HTTP)
	}
}

func (c Config) checkMesh(ps *Problems) {
	for _, seed := range c.Mesh.Join {
		host, port, msg := splitAddress(seed)
		switch {
		case msg != "":
			ps.add("join", "write the gossip address of a node as host:port, for example 10.0.0.1:8582", "%q %s", seed, msg)
		case IsWildcard(host) || port == "0":
			ps.add("join", "use the address the node advertises, and its gossip port",
				"%q is not an address anybody can connect to", seed)
		}
	}
	n, voter := c.Mesh.BootstrapExpect, c.Node.Role == RoleVoter
	switch {
	case n < 0 || n > maxBootstrapExpect:
		ps.add("bootstrap-expect", "use 1, 3 or 5", "is %d; it can be 0 to %d", n, maxBootstrapExpect)
	case n > 0 && !voter:
		ps.add("bootstrap-expect", "leave it out, or use --role voter",
			"is %d, but only voters start a mesh and this node is of role %s", n, c.Node.Role)
	}
	if len(c.Mesh.Join) == 0 && (c.Node.Role == RoleEdge || c.Node.Role == RoleLearner) {
		ps.add("join", "add --join HOST:PORT with the gossip address of a node of the mesh, a voter for example",
			"is required for role %s: it has nobody to ask", c.Node.Role)
	}
	const makeKey = `make one with "kvmesh mesh-key new > mesh.key", then "--mesh-key mesh.key" on every node`
	switch k := c.Mesh.KeyFile; {
	case k == "":
		ps.add("mesh-key", makeKey, "is required: nodes never talk in clear")
	case len(k) == 64 && strings.Trim(k, "0123456789abcdefABCDEF") == "":
		ps.add("mesh-key", makeKey,
			"is the key itself, which everybody on this machine can see now, and not the name of a file")
	}
	if p := c.Mesh.Profile; p != ProfileLAN && p != ProfileWAN {
		ps.add("profile", "use lan or wan", "%q is no profile", p)
	}
}

func (c Config) checkRest(ps *Problems) {
	if c.Cache.Size < minCacheSize {
		ps.add("cache-size", "use "+minCacheSize.String()+" or more", "%s is too small", c.Cache.Size)
	}
	if f := c.Log.Format; f != LogText && f != LogJSON {
		ps.add("log-format", "use text or json", "%q is no format", f)
	}
}

// splitAddress takes host:port apart. msg says what is wrong with it, and is empty when nothing is.
func splitAddress(addr string) (host, port, msg string) {
	if addr == "" {
		return "", "", "is empty"
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", "", "is not host:port"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		return "", "", "has no port number from 0 to 65535"
	}
	if host != "" && !isHost(host) {
		return "", "", "has no valid host"
	}
	return host, port, ""
}

// IsWildcard tells whether a listener on host is bound to all interfaces.
func IsWildcard(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "" || (err == nil && ip.Unmap().IsUnspecified())
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || (err == nil && ip.IsLoopback())
}

// isHost takes IP addresses and host names (RFC 1123, and underscores, which container networks use).
func isHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	return h != "" && len(h) <= 253 && !strings.ContainsFunc(h, func(r rune) bool {
		return !(r == '-' || r == '.' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z')
	})
}

// CheckRegion reports what is wrong with the name of a region.
func CheckRegion(name string) error {
	var ps Problems
	checkName(&ps, "region", name)
	if len(ps) == 0 {
		return nil
	}
	return errors.New(ps[0].String())
}
