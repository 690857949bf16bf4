package gossip

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kvmesh/raftstore/kv"
)

// State is what this node thinks of another one.
type State string

const (
	// Alive answers, or nothing else is known.
	Alive State = "alive"
	// Suspect has left two pings of this node unanswered; the pool has not agreed yet. Do not send it work.
	Suspect State = "suspect"
	// Failed was declared dead by the pool. It is remembered for forgetFailed, and looked for.
	Failed State = "failed"
	// Left said goodbye. It is remembered for forgetLeft, for people to see.
	Left State = "left"
)

// Member is one node as this one sees it. It is a value: compare with ==, keep as long as you like.
type Member struct {
	ID, Name, Role, Region, Version string
	// HTTP, Peer and Gossip are host:port.
	HTTP, Peer, Gossip string
	// Cluster is the cluster id in hex, "" while the node belongs to no mesh.
	Cluster string
	// Expect is the bootstrap-expect of a voter, 0 when it was not given one.
	Expect int
	State  State
	// Since is when this node learned of State.
	Since time.Time
	// Self marks the node that is looking.
	Self bool
}

// Reachable reports whether work may be sent to the member.
func (m Member) Reachable() bool { return m.State == Alive }

// The meta of a node travels in every alive message:
//
//	version byte (1), cluster (16 bytes, zero = none), uvarint expect,
//	then name, role, region, version, http, peer: length byte, UTF-8 bytes
//
// Bytes that follow are ignored, so that fields can be added; another version byte is another format.
const (
	metaVersion = 1
	// metaLimit is memberlist's own. About 100 bytes are usual; a full state exchange carries one meta a node.
	metaLimit = 512
)

var errMeta = errors.New("malformed node meta")

// meta is the part of a Member that the node says about itself.
type meta struct {
	name, role, region, version, http, peer string
	cluster                                 kv.ClusterID
	expect                                  int
}

func (m meta) encode() ([]byte, error) {
	b := make([]byte, 0, 200)
	b = append(b, metaVersion)
	b = append(b, m.cluster[:]...)
	b = binary.AppendUvarint(b, uint64(m.expect))
	for _, f := range []struct{ name, text string }{
		{"name", m.name},
		{"role", m.role},
		{"region", m.region},
		{"version", m.version},
		{"http address", m.http},
		{"peer address", m.peer},
	} {
		if len(f.text) > 255 || !printable(f.text) {
			return nil, fmt.Errorf("gossip: %s %.64q: want at most 255 bytes of printable UTF-8", f.name, f.text)
		}
		b = append(b, byte(len(f.text)))
		b = append(b, f.text...)
	}
	if len(b) > metaLimit {
		return nil, fmt.Errorf("gossip: name, role, region, version and addresses need %d bytes, the limit is %d: shorten them",
			len(b), metaLimit)
	}
	return b, nil
}

func decodeMeta(b []byte) (meta, error) {
	var m meta
	if len(b) > metaLimit {
		return m, fmt.Errorf("%w: %d bytes", errMeta, len(b))
	}
	if len(b) < 1+len(m.cluster) {
		return m, fmt.Errorf("%w: %d bytes only", errMeta, len(b))
	}
	if b[0] != metaVersion {
		return m, fmt.Errorf("%w: version %d", errMeta, b[0])
	}
	b = b[1:]
	b = b[copy(m.cluster[:], b):]
	expect, n := binary.Uvarint(b)
	if n <= 0 || expect > maxExpect {
		return m, fmt.Errorf("%w: expect", errMeta)
	}
	m.expect = int(expect)
	b = b[n:]
	for _, f := range []*string{&m.name, &m.role, &m.region, &m.version, &m.http, &m.peer} {
		if len(b) == 0 || int(b[0]) > len(b)-1 {
			return m, fmt.Errorf("%w: truncated", errMeta)
		}
		*f = string(b[1 : 1+int(b[0])])
		b = b[1+len(*f):]
		if !printable(*f) {
			return m, fmt.Errorf("%w: unprintable text", errMeta)
		}
	}
	return m, nil
}

// foreign reports whether two nodes belong to different meshes; one that belongs to none yet is foreign to nobody.
func foreign(a, b kv.ClusterID) bool { return !a.IsZero() && !b.IsZero() && a != b }

func clusterHex(c kv.ClusterID) string {
	if c.IsZero() {
		return ""
	}
	return hex.EncodeToString(c[:])
}

func (m meta) member(id, gossipAddr string) Member {
	return Member{
		ID: id, Name: m.name, Role: m.role, Region: m.region, Version: m.version,
		HTTP: m.http, Peer: m.peer, Gossip: gossipAddr,
		Cluster: clusterHex(m.cluster), Expect: m.expect, State: Alive,
	}
}

// printable keeps what a peer says out of trouble in logs, tables and terminals.
func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}
