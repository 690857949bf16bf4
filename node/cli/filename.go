package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

const (
	// manifestName is the file that export writes beside the values, and import reads.
	manifestName = ".kvmesh-manifest.json"
	// exportDir is where an export keeps what it needs to go on; it is gone when the export is whole.
	exportDir = ".kvmesh-export"
	// maxFileName is NAME_MAX of every common file system, in bytes.
	maxFileName = 255
)

// fileNamer gives each key a path below a directory. Most keys are their own path. Where a file system cannot hold one,
// parts of it are written differently, always with a percent sign, which is never used plainly, so that two keys never
// get the same path:
//
//	%25     a percent sign           %00  NUL
//	%-      an empty part            %2E  %2E%2E  the parts . and ..
//	%d      at the end of a directory's name: there is a key, and so a file, with the plain name
//	%h…     a part longer than 255 bytes: SHA-256 of it in hex
//	%2Ekvmesh-manifest.json          the name of the manifest itself, and of exportDir
//
// The way back is not computed: the manifest lists every key whose path is not its name. Upper and lower case are told
// apart, as the file systems of servers do.
//
// Keys must come in the order of their bytes. Then a key always comes before those below it (`a` before `a/b`), and the
// only earlier keys that matter are those with an end still open: nested, hence a stack.
type fileNamer struct {
	open []string // keys that may still get others below them, each the prefix of the next
}

// path returns the slash-separated path for the next key.
func (n *fileNamer) path(key string) string {
	// What is below k lies between k+"/" and k+"0", because 0 is the byte after the slash.
	for len(n.open) > 0 && key >= n.open[len(n.open)-1]+"0" {
		n.open = n.open[:len(n.open)-1]
	}
	parts := strings.Split(key, "/")
	end := -1 // of the part, in key
	for i, part := range parts {
		end += 1 + len(part)
		suffix := ""
		if i < len(parts)-1 && slices.Contains(n.open, key[:end]) {
			suffix = "%d"
		}
		name := escapePart(part)
		if i == 0 && (part == manifestName || part == exportDir) {
			name = "%2E" + part[1:]
		}
		if len(name)+len(suffix) > maxFileName {
			sum := sha256.Sum256([]byte(part))
			name = "%h" + hex.EncodeToString(sum[:])
		}
		parts[i] = name + suffix
	}
	n.open = append(n.open, key)
	return strings.Join(parts, "/")
}

func escapePart(part string) string {
	switch part {
	case "":
		return "%-"
	case ".", "..":
		return strings.ReplaceAll(part, ".", "%2E")
	}
	return strings.NewReplacer("%", "%25", "\x00", "%00").Replace(part)
}
