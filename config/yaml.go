package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFileBytes bounds a configuration file; a hundred times what all settings need.
const maxFileBytes = 1 << 20

// fileValue is one setting as the file gives it.
type fileValue struct {
	values []string
	line   int
}

// readFile reads the settings of a YAML file, by setting name. It is strict: a key that is not in the table, a key given
// twice and a second document are problems, each with its line. The nodes are walked by hand and not decoded into a
// struct, so that the table stays the only description and every problem is found at once.
func readFile(path string) (map[string]fileValue, Problems) {
	bad := func(format string, args ...any) Problems {
		return Problems{{
			Key: "config", Message: fmt.Sprintf(format, args...), Remedy: "check the path given by --config or KVMESH_CONFIG",
		}}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, bad("cannot open the file: %v", err)
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	switch {
	case err != nil:
		return nil, bad("cannot read the file: %v", err)
	case len(b) > maxFileBytes:
		return nil, bad("%s has more than %d bytes", path, maxFileBytes)
	}
	return parseYAML(path, b)
}

func parseYAML(path string, b []byte) (map[string]fileValue, Problems) {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(b))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, nil // an empty file says nothing
	case err != nil:
		return nil, Problems{{Key: "config", Message: fmt.Sprintf("%s is not YAML: %v", path, err)}}
	}
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, Problems{{Key: "config", Message: path + " holds more than one YAML document", Remedy: "keep the first one"}}
	}
	w := yamlWalk{path: path, byPath: map[string]Setting{}, found: map[string]fileValue{}}
	for _, s := range Settings() {
		w.byPath[s.YAML] = s
	}
	if len(doc.Content) == 1 {
		w.mapping("", doc.Content[0])
	}
	return w.found, w.problems
}

// yamlWalk collects what a file says.
type yamlWalk struct {
	path     string
	byPath   map[string]Setting
	found    map[string]fileValue
	problems Problems
}

func (w *yamlWalk) problem(key string, n *yaml.Node, remedy, format string, args ...any) {
	w.problems = append(w.problems, Problem{
		Key: key, Origin: Origin{FromFile, fmt.Sprintf("%s:%d", w.path, n.Line)},
		Message: fmt.Sprintf(format, args...), Remedy: remedy,
	})
}

// mapping walks one level. Its depth is bounded by the table: only levels that the table knows are entered.
func (w *yamlWalk) mapping(prefix string, n *yaml.Node) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "listen:" with nothing below it
	}
	if n.Kind != yaml.MappingNode {
		key := cmp.Or(strings.TrimSuffix(prefix, "."), "config")
		w.problem(key, n, "write its settings below it, as name: value", "is not a mapping")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		path := prefix + key.Value
		if seen[key.Value] {
			w.problem(path, key, "keep one of them", "given twice")
			continue
		}
		seen[key.Value] = true
		if s, ok := w.byPath[path]; ok {
			w.setting(s, value)
		} else if w.isLevel(path) {
			w.mapping(path+".", value)
		} else {
			w.problem(path, key, w.suggest(path, key.Value), "unknown key")
		}
	}
}

func (w *yamlWalk) setting(s Setting, n *yaml.Node) {
	line := n.Line
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		return // left empty: as if it were not there
	case n.Kind == yaml.ScalarNode:
		w.found[s.Name] = fileValue{[]string{n.Value}, line}
	case n.Kind == yaml.SequenceNode && s.Kind == List:
		v := fileValue{line: line}
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				w.problem(s.YAML, item, "write one text an item", "an item is not a text")
				return
			}
			v.values = append(v.values, item.Value)
		}
		w.found[s.Name] = v
	default:
		w.problem(s.YAML, n, "write one value after the colon", "takes one value")
	}
}

// isLevel tells whether settings stand below path.
func (w *yamlWalk) isLevel(path string) bool {
	for p := range w.byPath {
		if strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// suggest finds what the unknown key was probably meant to be: a flag's name, or a known key at most two letters away.
func (w *yamlWalk) suggest(path, last string) string {
	best, near := "", 3
	for _, s := range Settings() { // in the order of the table, so that the answer is always the same
		if s.Name == last {
			return "write it as " + s.YAML
		}
		if d := distance(path, s.YAML); d < near {
			best, near = s.YAML, d
		}
	}
	if best == "" {
		return "see kvmesh config reference for the keys there are"
	}
	return "did you mean " + best + "?"
}

// distance is Levenshtein's, by Wagner and Fischer's table of two rows.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
