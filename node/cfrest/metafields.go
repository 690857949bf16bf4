package cfrest

import (
	"bytes"
	"strconv"
	"strings"
	"unicode/utf8"

	"kvmesh/node/cfkv"
)

// maxMetaDepth is how deep metadata that comes in fields may nest.
const maxMetaDepth = 16

// metaFields is metadata that an SDK has taken apart into the fields of a form: `metadata[a][b]` and `metadata[list][]` by
// the TypeScript SDK, `metadata.a.b` and `metadata.list.0` by the one for Go. The real service loses it. A form has only
// texts, so all leaves are strings.
type metaFields struct {
	n, bytes int
	root     metaNode
}

// metaNode is an object, a list or, as a leaf, a text.
type metaNode struct {
	kind  byte // 0 = nothing yet, '{', '[', '"'
	names []string
	kids  map[string]*metaNode // of an object
	list  []*metaNode
	text  string
	dots  bool // an object whose names came with dots, so that numbers may be positions
}

// step is one step of a path: a member, or the next element of a list.
type step struct {
	name    string
	element bool
	dot     bool
}

// add takes one field; path is its name without "metadata".
func (m *metaFields) add(path, text string) error {
	// What they become is at least as long; more of them cannot fit.
	if m.bytes += len(path) + len(text); m.bytes > maxMetadataText {
		return cfkv.MetadataTooLarge(int64(m.bytes))
	}
	m.n++
	steps, ok := parsePath(path)
	if !ok || !utf8.ValidString(path) || !utf8.ValidString(text) || !m.root.put(steps, text) {
		return badBody("the field metadata%s does not go with the others, or is malformed; send metadata as JSON in one field", cfkv.Shown(path))
	}
	return nil
}

// parsePath reads `[a][b]`, `[a][]` or `.a.b`.
func parsePath(path string) (steps []step, ok bool) {
	for path != "" {
		var name string
		dot := path[0] == '.'
		switch {
		case dot:
			end := strings.IndexByte(path[1:], '.') + 1
			if end == 0 {
				end = len(path)
			}
			name, path = path[1:end], path[end:]
		case path[0] == '[':
			if name, path, ok = strings.Cut(path[1:], "]"); !ok {
				return nil, false
			}
		default:
			return nil, false
		}
		steps = append(steps, step{name, name == "" && !dot, dot})
		if len(steps) > maxMetaDepth || name == "" && dot {
			return nil, false
		}
	}
	return steps, true
}

// put stores a text at the end of a path; false if something else is in its way.
func (n *metaNode) put(steps []step, text string) bool {
	for len(steps) > 0 {
		at := steps[0]
		steps = steps[1:]
		kind := byte('{')
		if at.element {
			kind = '['
		}
		if n.kind != 0 && n.kind != kind {
			return false
		}
		n.kind = kind
		if at.element {
			n = n.element(steps)
		} else {
			n = n.member(at)
		}
	}
	if n.kind != 0 {
		return false
	}
	n.kind, n.text = '"', text
	return true
}

func (n *metaNode) member(at step) *metaNode {
	kid, ok := n.kids[at.name]
	if !ok {
		kid = &metaNode{}
		if n.kids == nil {
			n.kids = map[string]*metaNode{}
		}
		n.kids[at.name] = kid
		n.names = append(n.names, at.name)
		n.dots = at.dot
	}
	return kid
}

// element is the last element of a list while the members of one object come, else a new one.
func (n *metaNode) element(rest []step) *metaNode {
	if len(n.list) > 0 && len(rest) > 0 && !rest[0].element {
		last := n.list[len(n.list)-1]
		if kid, ok := last.kids[rest[0].name]; last.kind == '{' && (!ok || len(rest) > 1 && kid.kind != '"') {
			return last
		}
	}
	kid := &metaNode{}
	n.list = append(n.list, kid)
	return kid
}

// json is the metadata as it was before it was taken apart.
func (m *metaFields) json() []byte {
	var b bytes.Buffer
	m.root.write(&b)
	return b.Bytes()
}

func (n *metaNode) write(b *bytes.Buffer) {
	elements := n.list
	switch {
	case n.kind == '"':
		b.Write(jsonOf(n.text))
		return
	case n.kind == '{':
		if elements = n.positions(); elements == nil {
			b.WriteByte('{')
			for i, name := range n.names {
				if i > 0 {
					b.WriteByte(',')
				}
				b.Write(jsonOf(name))
				b.WriteByte(':')
				n.kids[name].write(b)
			}
			b.WriteByte('}')
			return
		}
	}
	b.WriteByte('[')
	for i, kid := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		kid.write(b)
	}
	b.WriteByte(']')
}

// positions are the elements of an object whose names are 0, 1, 2 …, which is how the SDK for Go writes a list; else nil.
func (n *metaNode) positions() []*metaNode {
	if !n.dots {
		return nil
	}
	var all []*metaNode
	for i := range n.names {
		kid, ok := n.kids[strconv.Itoa(i)]
		if !ok {
			return nil
		}
		all = append(all, kid)
	}
	return all
}
