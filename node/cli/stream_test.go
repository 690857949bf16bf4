package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/node/jsonstream"
	"kvmesh/raftstore/kv"
)

// oddState fills the default namespace with what every way of moving must bring over as it is.
func oddState(f *fakeNode) {
	for i, key := range append(hostile(), "ü x", "%25", "+", "a b+c%20d", strings.Repeat("k", 512)) {
		v := &fakeValue{value: bytes.Repeat([]byte{byte(i * 7), 0, 'x', '\n', '"'}, i*i), revision: uint64(i + 1)}
		if i%3 == 0 {
			v.metadata = fmt.Sprintf(`{"i":%d,"t":"ü🌍<\u007f","n":[1e3,null]}`, i)
		}
		if i%4 == 0 {
			v.expiration = fakeNow + int64(i) + 1
		}
		f.data[defaultID][key] = v
	}
	f.data[defaultID]["empty"] = &fakeValue{value: []byte{}, revision: 1}
	f.data[defaultID]["text"] = &fakeValue{value: []byte("<b>ü\u2028\x00 \"\\ </b>"), revision: 1, metadata: `"` + strings.Repeat("ü", 511) + `"`}
	f.data[defaultID]["zeros"] = &fakeValue{value: make([]byte, kv.MaxInlineValueBytes+1), revision: 1}
	f.data[defaultID]["long text"] = &fakeValue{value: []byte(strings.Repeat("ü🌍x", 10_000)), revision: 1}
}

// sameState says how two namespaces differ.
func sameState(t *testing.T, f *fakeNode, from, to string) {
	t.Helper()
	before, after := f.state(from), f.state(to)
	if len(before) != len(after) {
		t.Errorf("%d keys became %d", len(before), len(after))
	}
	for key, v := range before {
		got, ok := after[key]
		if !ok || !bytes.Equal(got.value, v.value) || got.metadata != v.metadata || got.expiration != v.expiration {
			t.Errorf("%q: %v %d bytes %q %d, want %d bytes %q %d",
				key, ok, len(got.value), got.metadata, got.expiration, len(v.value), v.metadata, v.expiration)
		}
	}
}

// Export and then import is the identity, in each of the streams, through files and through pipes.
func TestStreamsAreTheIdentity(t *testing.T) {
	for _, format := range []string{formatNDJSON, formatWrangler} {
		t.Run(format, func(t *testing.T) {
			f := newFake(t)
			s := newShell(f.URL)
			oddState(f)
			file := filepath.Join(t.TempDir(), "out")
			out := s.ok(t, "export", "--format", format, file)
			if !strings.HasPrefix(out, fmt.Sprintf("export: %d keys, ", len(f.data[defaultID]))) {
				t.Errorf("summary: %s", out)
			}
			s.ok(t, "namespace", "create", "copy")
			s.ok(t, "import", "--format", format, "--namespace", "copy", file)
			sameState(t, f, "default", "copy")

			piped := s.run("export", "--format="+format, "-")
			text, err := os.ReadFile(file)
			if err != nil || piped.code != ExitOK || piped.out != string(text) || !strings.HasPrefix(piped.err, "export: ") {
				t.Fatalf("exit %d, %v: the pipe got %d bytes, the file has %d: %s", piped.code, err, len(piped.out), len(text), piped.err)
			}
			s.ok(t, "namespace", "create", "copy 2")
			s.stdin = piped.out
			s.ok(t, "import", "--format", format, "--namespace", "copy 2", "-")
			sameState(t, f, "default", "copy 2")
			left, err := os.ReadDir(filepath.Dir(file))
			if err != nil || len(left) != 1 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// wrangler checks each entry before it sends any: exactly these members, of these types.
func TestWranglerFormat(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	if out := s.run("export", "--format", "wrangler", "-").out; out != "[]\n" {
		t.Errorf("nothing is exported as %q", out)
	}
	oddState(f)
	var doc []struct {
		Key, Value *string
		Base64     bool
		Metadata   any
		Expiration int64
	}
	dec := json.NewDecoder(strings.NewReader(s.run("export", "--format", "wrangler", "-").out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	for i, e := range doc {
		want := f.data[defaultID][*e.Key]
		value := []byte(*e.Value)
		var err error
		if e.Base64 {
			value, err = base64.StdEncoding.DecodeString(*e.Value)
		}
		if err != nil || !bytes.Equal(value, want.value) || e.Expiration != want.expiration || (e.Metadata != nil) != (want.metadata != "") {
			t.Errorf("%q: %v", *e.Key, err)
		}
		if i > 0 && *e.Key <= *doc[i-1].Key {
			t.Errorf("%q comes after %q", *e.Key, *doc[i-1].Key)
		}
	}
	if len(doc) != len(f.data[defaultID]) {
		t.Errorf("%d entries of %d keys", len(doc), len(f.data[defaultID]))
	}
}

// What is wrong with an entry is told with its place, its key and the limit; the others are imported.
func TestImportNamesWhatIsWrong(t *testing.T) {
	long := strings.Repeat("m", kv.MaxMetadataBytes)
	entries := []struct{ entry, says string }{
		{`{"key":"good","value":"1"}`, ""},
		{`{"value":"AAE=","metadata": { "a" : 1 } ,"base64":true,"key":"late"}`, ""},
		{`{"key":"","value":"1"}`, "the key is empty"},
		{`{"key":"..","value":"1"}`, `the key ".." is not allowed`},
		{`{"key":"` + strings.Repeat("k", 513) + `","value":"1"}`, "the key has 513 bytes; the limit is 512"},
		{`{"key":"` + strings.Repeat("k", 9000) + `","value":"1"}`, "the key has more than 4096 bytes; the limit is 512"},
		{`{"key":"big meta","value":"1","metadata":"` + long + `"}`, "the metadata has 1026 bytes; the limit is 1024"},
		{`{"key":"huge meta","value":"1","metadata":"` + strings.Repeat(long, 9) + `"}`, "the metadata has more than 4096 bytes; the limit is 1024"},
		{`{"key":"not base64","value":"A","base64":true}`, "not base64 with its padding"},
		{`{"key":"no text","value":5}`, "it is a number, not a string"},
		{`{"key":"surrogate","value":"\ud800"}`, "not valid Unicode"},
		{`{"key":"no value"}`, "has no value"},
		{`{"value":"v"}`, "has no key"},
		{`{"key":"when","value":"1","expiration":"soon"}`, "expiration: it is a string"},
		{`{"key":"never","value":"1","expiration":-5}`, "-5 is not a number of seconds"},
		{`{"key":"twice","value":"1","value":"2"}`, `the member "value" twice`},
		{`17`, "it is a number, not an object"},
		{`{"key":"old","value":"1","expiration":1600000000}`, ""},
		{`{"key":"null","value":"1","expiration":null,"expiration_ttl":null,"metadata":null,"base64":null}`, ""},
		{`{"key":"ttl wins","value":"1","expiration":1600000000,"expiration_ttl":100,"comment":"x"}`, ""},
		{`{"key":"same","value":"1"}`, ""},
		{`{"key":"same","value":"2"}`, ""},
	}
	for format, place := range map[string]string{formatNDJSON: "line", formatWrangler: "entry"} {
		f := newFake(t)
		s := newShell(f.URL)
		var all []string
		for _, e := range entries {
			all = append(all, e.entry)
		}
		s.stdin = strings.Join(all, "\r\n")
		if format == formatWrangler {
			s.stdin = " [" + strings.Join(all, " ,\n") + "]\n"
		}
		r := s.run("import", "--format", format, "-", "-o", "json")
		var doc struct {
			Keys, Skipped int
			Failed        []failure
		}
		if err := json.Unmarshal([]byte(r.out), &doc); err != nil || r.code != ExitFailure {
			t.Fatalf("%s: exit %d, %v: %s%s", format, r.code, err, r.out, r.err)
		}
		failed := map[string]string{}
		for _, x := range doc.Failed {
			failed[x.At] = x.Error
		}
		wrong := 0
		for i, e := range entries {
			at := fmt.Sprintf("%s %d", place, i+1)
			if e.says == "" {
				if failed[at] != "" {
					t.Errorf("%s: %s", at, failed[at])
				}
				continue
			}
			wrong++
			found := false
			for line := range strings.Lines(r.err) {
				found = found || strings.HasPrefix(line, "kvmesh: import "+at) && strings.Contains(line, e.says)
			}
			if !found {
				t.Errorf("%s: stderr does not say %q of it:\n%s", at, e.says, failed[at])
			}
		}
		if len(doc.Failed) != wrong || doc.Skipped != 1 || doc.Keys != len(entries)-wrong-1 {
			t.Errorf("%s: %d failed of %d, %d skipped, %d imported", format, len(doc.Failed), wrong, doc.Skipped, doc.Keys)
		}
		got := f.state("default")
		if string(got["late"].value) != "\x00\x01" || got["late"].metadata != `{"a":1}` || string(got["same"].value) != "2" ||
			got["ttl wins"].expiration != fakeNow+100 || got["null"].expiration != 0 {
			t.Errorf("%s: %v", format, got)
		}
		if !strings.Contains(r.err, `the member "comment" is unknown`) {
			t.Errorf("%s: nothing is said of an unknown member: %s", format, r.err)
		}
	}
}

// Text that is not JSON is named by its place. A line does not spoil the next one; an array is over.
func TestImportOfBrokenJSON(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	s.stdin = "\n" + `{"key":"a","value":"1"}` + "\n  \n" + `{"key":"b","value":"1` + "\n" + `{"key":"c","value":"1"} x` + "\n" + `{"key":"d","value":"1"}`
	r := s.run("import", "--format", "ndjson", "-")
	for _, want := range []string{
		"line 4, key b: not JSON at byte 21 of the line, 49 of the stream: it ends too early", "line 5, key c: not JSON at byte 24",
	} {
		if !strings.Contains(r.err, want) {
			t.Errorf("stderr does not say %q: %s", want, r.err)
		}
	}
	if got := f.state("default"); r.code != ExitFailure || len(got) != 2 || got["a"].value == nil || got["d"].value == nil {
		t.Errorf("exit %d: %v", r.code, got)
	}
	for text, want := range map[string]string{
		`[{"key":"x","value":"1"},{"key":"y",`: "entry 2: not JSON at byte 36: it ends too early; what came before has been imported",
		`[{"key":"x","value":"1"}`:             "entry 1: not JSON at byte 24: it ends too early",
		`[{"key":"x","value":"1"}] {}`:         "behind the array: not JSON at byte 26",
		`{"key":"x","value":"1"}`:              "is it --format ndjson?",
		``:                                     "before the first entry: not JSON at byte 0: it ends too early",
	} {
		s.stdin = text
		r := s.run("import", "--format", "wrangler", "-")
		if r.code != ExitFailure || !strings.Contains(r.err, want) {
			t.Errorf("%s: exit %d, want %q: %s", text, r.code, want, r.err)
		}
	}
}

func TestUsageOfMoves(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	file := filepath.Join(tree(t, map[string]string{"f": ""}), "f")
	for _, tc := range []struct{ args, want string }{
		{"import " + file, "--format ndjson"},
		{"import --format dir " + file, "is no directory"},
		{"import -", "--format ndjson"},
		{"import --format tar -", "is unknown; use dir, ndjson or wrangler"},
		{"export --format tar x", "is unknown; use dir, ndjson or wrangler"},
		{"export -", "cannot go to standard output"},
		{"export --format ndjson --resume -", "--resume needs a FILE"},
		{"import --format ndjson --resume -", "only where --state says"},
		{"import --account a " + file, "for --from-cloudflare only"},
		{"import --from-cloudflare http://x", "needs --account"},
		{"import --from-cloudflare http://x --account a", "needs --namespace-id"},
		{"import --from-cloudflare ftp://x --account a --namespace-id n", "is not the base URL of an API"},
		{"import --from-cloudflare http://x --account a --namespace-id n " + file, "there is no other"},
	} {
		if r := s.run(strings.Fields(tc.args)...); r.code != ExitUsage || !strings.Contains(r.err, tc.want) {
			t.Errorf("%s: exit %d, want %q: %s", tc.args, r.code, tc.want, r.err)
		}
	}
	if r := s.run("export", "--format", "ndjson", file); r.code != ExitFailure || !strings.Contains(r.err, "is there already") {
		t.Errorf("exit %d: %s", r.code, r.err)
	}
}

// A value is what its text says, of whatever length, and nothing else is base64.
func TestValuesOfEntries(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 4, 5, textBlock - 1, textBlock, textBlock + 1, textBlock/4*3 - 1, textBlock / 4 * 3, textBlock/4*3 + 2} {
		value := bytes.Repeat([]byte{255, 0, 7}, n/3+1)[:n]
		text := strings.Repeat("ü€x", n/6+1)[:n]
		if n > 0 {
			text = strings.ToValidUTF8(text, "y")
		}
		doc := fmt.Sprintf(`{"key":"a","value":"%s","base64":true}{"key":"b","value":"%s"}`, base64.StdEncoding.EncodeToString(value), text)
		er := entryReader{r: jsonstream.New(strings.NewReader(doc))}
		a, err1 := er.read()
		b, err2 := er.read()
		if err := errorsOf(err1, err2); err != nil || !bytes.Equal(a.value, value) || string(b.value) != text {
			t.Errorf("%d bytes: %v: %d and %d", n, err, len(a.value), len(b.value))
		}
	}
	for text, says := range map[string]string{
		"A": "not base64", "AA": "not base64", "AAA": "not base64", "AA=": "not base64", "AAAAA": "not base64", "A===": "not base64", "AA==AA==": "not base64",
		"====": "not base64", "AAAA=": "not base64", "_-==": "not base64", "AA==": "", "AAA=": "", `A\nA\r\nA=`: "", `AAA\n`: "not base64", "": "", "AAAA": "",
	} {
		er := entryReader{r: jsonstream.New(strings.NewReader(`{"key":"a","value":"` + text + `","base64":true}`))}
		_, err := er.read()
		if (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%.20s, %d bytes: %v, want %q", text, len(text), err, says)
		}
	}
	er := entryReader{r: jsonstream.New(strings.NewReader(`{"key":"a","value":"` + strings.Repeat("A", kv.MaxValueBytes+1) + `"}`))}
	if _, err := er.read(); err == nil || !strings.Contains(err.Error(), "the value has 26214401 bytes; the limit is 26214400") {
		t.Errorf("a value that is one byte too long: %v", err)
	}
}
