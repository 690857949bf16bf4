package jsonstream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

// tree reads a whole value by the calls that a caller has, as encoding/json would give it.
func tree(r *Reader) (any, error) {
	kind, err := r.Kind()
	if err != nil {
		return nil, err
	}
	switch kind {
	case Object:
		m := map[string]any{}
		return m, r.Object(func(name string) error {
			v, err := tree(r)
			m[name] = v
			return err
		})
	case Array:
		a := []any{}
		return a, r.Array(func(i int) error {
			if i != len(a) {
				return fmt.Errorf("element %d comes as number %d", len(a), i)
			}
			v, err := tree(r)
			a = append(a, v)
			return err
		})
	case String:
		t, err := r.Text()
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(iotest.OneByteReader(t))
		if err != nil {
			return nil, errors.Join(t.Close(), err)
		}
		return string(b), nil
	case Number:
		raw, err := r.Raw(1 << 20)
		return json.Number(raw), err
	case Bool:
		return r.Bool()
	}
	return nil, r.Skip()
}

var documents = []string{
	`{}`, `[]`, ` [ ] `, `{"a":1}`, `{"a":{"b":[1,2,{"c":null}]},"d":true,"e":false}`, `[1,-0,0.5,1e9,1E-7,-12.34e+5]`,
	`"\u0041\n\t\r\b\f\"\\\/"`, `"\ud83d\ude00 ü 😀"`, `"\ud800"`, `"\ud800\u0041"`, `"\udc00"`, `"\ufffd"`, "\"\xff\"", "\"\xed\xa0\x80\"",
	"\"\xc3\"", "\"\xc3\\n\xbc\"", `"` + strings.Repeat("ü", bufferBytes) + `"`, `{"` + strings.Repeat("n", 200) + `":1}`,
	`[1,]`, `[,1]`, `{"a":1,}`, `{"a" 1}`, `{a:1}`, `{"a":}`, `[1 2]`, `[1`, `{"a":1`, `{"a"`, `"abc`, `"\`, `"\u12`, `"\u12g4"`, `"\x"`,
	`01`, `-`, `1.`, `.5`, `1e`, `1e+`, `+1`, `tru`, `nul`, `trux`, `NaN`, ``, ` `, `{}{}`, `[]x`, "\"a\nb\"", "\"a\x00b\"", "\x00", "\xef\xbb\xbf{}",
	strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), strings.Repeat("[", maxDepth+1), "[" + strings.Repeat(" ", 3*bufferBytes) + "]",
	`{"metadata": {"a" : [1, "x y", {}] , "b":""} , "key":"k"}`,
}

func FuzzAgainstEncodingJSON(f *testing.F) {
	for _, d := range documents {
		f.Add([]byte(d))
	}
	f.Fuzz(func(t *testing.T, doc []byte) { against(t, doc) })
}

// against holds what this package makes of a document against encoding/json.
func against(t *testing.T, doc []byte) {
	t.Helper()
	if max(bytes.Count(doc, []byte("[")), bytes.Count(doc, []byte("{"))) > maxDepth/2 {
		return // only how deep it nests differs
	}
	valid := json.Valid(doc)
	r := New(iotest.DataErrReader(bytes.NewReader(doc)))
	err := r.Skip()
	if err == nil {
		err = r.End()
	}
	if (err == nil) != valid {
		t.Fatalf("%q: valid %v, Skip: %v", doc, valid, err)
	}
	if syntax := new(SyntaxError); err != nil && (!errors.As(err, &syntax) || syntax.Offset < 0 || syntax.Offset > int64(len(doc))) {
		t.Fatalf("%q: %#v", doc, err)
	}
	raw, err := New(bytes.NewReader(doc)).Raw(len(doc))
	if valid {
		var got, want bytes.Buffer
		if err := errors.Join(err, json.Compact(&got, raw), json.Compact(&want, doc)); err != nil || got.String() != want.String() {
			t.Fatalf("%q: Raw gives %q, %v", doc, raw, err)
		}
	}
	r = New(bytes.NewReader(doc))
	got, err := tree(r)
	if err == nil {
		err = r.End()
	}
	if !valid {
		if err == nil {
			t.Fatalf("%q was read as %v", doc, got)
		}
		return
	}
	var want any
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.UseNumber()
	if err := dec.Decode(&want); err != nil {
		t.Fatal(err)
	}
	switch replaced := !utf8.Valid(doc) || bytes.Contains(bytes.ToLower(doc), []byte(`\ud`)); {
	case err == nil && !longNames(want) && !reflect.DeepEqual(got, want):
		t.Fatalf("%q: got %#v, want %#v", doc, got, want)
	case err != nil && !replaced:
		t.Fatalf("%q: %v", doc, err)
	case err != nil && !isValueError(err):
		t.Fatalf("%q: a text that is not Unicode ends the document: %v", doc, err)
	}
}

// longNames says whether names were cut, or could not be read.
func longNames(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for name, e := range v {
			if len(name) > maxName || strings.ContainsRune(name, utf8.RuneError) || longNames(e) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(v, longNames)
	}
	return false
}

func TestAgainstEncodingJSON(t *testing.T) {
	for _, d := range documents {
		against(t, []byte(d))
	}
}

// TestValueErrorsLeaveTheDocument: whatever is wrong with one value, the next one can be read.
func TestValueErrorsLeaveTheDocument(t *testing.T) {
	for value, read := range map[string]func(*Reader) error{
		`{"a":[1,"x]"]}`:       func(r *Reader) error { _, err := r.String(9); return err },
		`17`:                   func(r *Reader) error { _, err := r.String(9); return err },
		`"0123456789"`:         func(r *Reader) error { _, err := r.String(9); return err },
		`"\ud800 \" ]"`:        func(r *Reader) error { _, err := r.String(99); return err },
		"\"\xff\\\"]\"":        func(r *Reader) error { _, err := r.String(99); return err },
		`"text"`:               func(r *Reader) error { _, err := r.Int(); return err },
		`1.5`:                  func(r *Reader) error { _, err := r.Int(); return err },
		`1e3`:                  func(r *Reader) error { _, err := r.Int(); return err },
		`99999999999999999999`: func(r *Reader) error { _, err := r.Int(); return err },
		`null`:                 func(r *Reader) error { _, err := r.Bool(); return err },
		`[1,2,3]`:              func(r *Reader) error { return r.Object(func(string) error { return nil }) },
		`{"b":2}`:              func(r *Reader) error { return r.Array(func(int) error { return nil }) },
		`[1, 2, 3]`:            func(r *Reader) error { _, err := r.Raw(8); return err },
		`{"c":3}`:              func(r *Reader) error { _, err := r.Text(); return err },
		`"long text in which something is \udc00 wrong ] "`: func(r *Reader) error {
			text, err := r.Text()
			if err != nil {
				return err
			}
			_, err = io.ReadAll(text)
			if _, again := text.Read(make([]byte, 1)); again != err {
				t.Errorf("read again: %v", again)
			}
			return errors.Join(text.Close(), text.Close(), err)
		},
	} {
		r := New(strings.NewReader(`[` + value + `, "next"]`))
		var next string
		err := r.Array(func(i int) (err error) {
			if i == 0 {
				if err = read(r); !isValueError(err) || err.Error() == "" {
					t.Errorf("%s: %v", value, err)
				}
				return nil
			}
			next, err = r.String(9)
			return err
		})
		if err = errors.Join(err, r.End()); err != nil || next != "next" {
			t.Errorf("%s: then %q, %v", value, next, err)
		}
	}
}

// TestErrorsOfTheSource are given as they are, and stay.
func TestErrorsOfTheSource(t *testing.T) {
	broken := errors.New("broken")
	doc := `{"a":"` + strings.Repeat("x", 100) + `","b":[1,2],"c":12345,"d":"\ud83d\ude00"}`
	for n := range len(doc) {
		r := New(io.MultiReader(strings.NewReader(doc[:n]), iotest.ErrReader(broken)))
		for range 2 {
			if _, err := tree(r); !errors.Is(err, broken) {
				t.Fatalf("after %d bytes: %v", n, err)
			}
		}
		r = New(strings.NewReader(doc[:n]))
		_, err := tree(r)
		if syntax := new(SyntaxError); !errors.As(err, &syntax) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
	}
}

// endless gives a string without an end, and counts.
type endless struct{ given int }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	if e.given == 0 {
		p[0] = '"'
	}
	e.given += len(p)
	if e.given > 16<<20 {
		return 0, io.ErrUnexpectedEOF
	}
	return len(p), nil
}

// TestMemory: a string of 16 MiB that nobody wants costs no more than the buffer.
func TestMemory(t *testing.T) {
	for name, read := range map[string]func(*Reader) error{
		"Skip":   (*Reader).Skip,
		"String": func(r *Reader) error { _, err := r.String(100); return err },
		"Raw":    func(r *Reader) error { _, err := r.Raw(100); return err },
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := read(New(&endless{})); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16*bufferBytes {
			t.Errorf("%s allocates %d bytes", name, n)
		}
	}
}

func BenchmarkText(b *testing.B) {
	doc := `"` + strings.Repeat("0123456789abcdef", 64<<10) + `"`
	b.SetBytes(int64(len(doc)))
	for range b.N {
		text, err := New(strings.NewReader(doc)).Text()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, text); err != nil {
			b.Fatal(err)
		}
	}
}
