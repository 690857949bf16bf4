package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strconv"
	"unicode/utf8"
)

// write appends one entry.
func (ex *streamExporter) write(key string, f fetched) error {
	begin := ""
	if ex.array {
		if begin = ",\n"; ex.entries == 0 {
			begin = "[\n"
		}
	}
	ex.entries++
	name, err := quoted(key)
	if err != nil {
		return err
	}
	if err := ex.put(begin, `{"key":`, name, `,"value":`); err != nil {
		return err
	}
	if err := ex.value(f.value); err != nil {
		return err
	}
	if len(f.metadata) > 0 {
		var b bytes.Buffer
		if err := json.Compact(&b, f.metadata); err != nil { // on one line
			return err
		}
		if err := ex.put(`,"metadata":`, b.String()); err != nil {
			return err
		}
	}
	if f.expiration != 0 {
		if err := ex.put(`,"expiration":`, strconv.FormatInt(f.expiration, 10)); err != nil {
			return err
		}
	}
	if ex.array {
		return ex.put("}")
	}
	return ex.put("}\n")
}

// value writes a value as text where it is text that JSON does not blow up, and else in base64, without another copy of it.
func (ex *streamExporter) value(value []byte) error {
	if err := ex.put(`"`); err != nil {
		return err
	}
	if !suitsJSON(value) {
		enc := base64.NewEncoder(base64.StdEncoding, writerFunc(func(b []byte) (int, error) { return len(b), ex.put(string(b)) }))
		_, err := enc.Write(value)
		if err = errors.Join(err, enc.Close()); err != nil {
			return err
		}
		return ex.put(`","base64":true`)
	}
	for len(value) > 0 {
		n := min(len(value), valueChunk)
		for n < len(value) && !utf8.RuneStart(value[n]) {
			n--
		}
		text, err := quoted(string(value[:n]))
		if err == nil {
			err = ex.put(text[1 : len(text)-1])
		}
		if err != nil {
			return err
		}
		value = value[n:]
	}
	return ex.put(`"`)
}

// suitsJSON says whether bytes are text that is no longer as a JSON string than it would be in base64.
func suitsJSON(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	extra := 0
	for _, c := range b {
		switch {
		case c == '"' || c == '\\' || c == '\n' || c == '\r' || c == '\t':
			extra++
		case c < ' ':
			extra += 5 // \u0000
		}
	}
	return extra <= len(b)/3+16
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (ex *streamExporter) put(texts ...string) error {
	for _, s := range texts {
		n, err := ex.out.WriteString(s)
		ex.written += int64(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// quoted is text as a JSON string.
func quoted(s string) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return "", err
	}
	return string(bytes.TrimSuffix(b.Bytes(), []byte("\n"))), nil
}
