package kv

import (
	"bytes"
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// ValidateKey checks a key in its decoded form: 1–512 bytes of UTF-8, neither "." nor "..".
func ValidateKey(key string) error {
	switch {
	case key == "":
		return FieldErrorf(CodeInvalidKey, "key", "the key is empty; a key has 1 to %d bytes", MaxKeyBytes)
	case len(key) > MaxKeyBytes:
		return FieldErrorf(CodeKeyTooLong, "key", "the key has %d bytes; the limit is %d bytes of UTF-8", len(key), MaxKeyBytes)
	case key == "." || key == "..":
		return FieldErrorf(CodeInvalidKey, "key", "the key %q is not allowed, because URL clients resolve it away; choose another name", key)
	case !utf8.ValidString(key):
		return FieldErrorf(CodeInvalidKey, "key", "the key is not valid UTF-8; percent-encode the bytes of a UTF-8 name")
	}
	return nil
}

// CompactMetadata checks metadata given as JSON text and returns it without insignificant white space, so that it fits
// into a header. nil and empty input mean "no metadata" and return nil. The limit counts the bytes as given.
func CompactMetadata(raw []byte) ([]byte, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	if len(raw) > MaxMetadataBytes {
		return nil, FieldErrorf(CodeMetadataTooLarge, "metadata", "the metadata has %d bytes; the limit is %d bytes of JSON", len(raw), MaxMetadataBytes)
	}
	if !utf8.Valid(raw) {
		return nil, FieldErrorf(CodeInvalidMetadata, "metadata", "the metadata is not valid UTF-8; send JSON text in UTF-8")
	}
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		return nil, FieldErrorf(CodeInvalidMetadata, "metadata", "the metadata is not JSON (%v); send one JSON value, for example {\"type\":\"text/html\"}", err)
	}
	return out.Bytes(), nil
}

// ValidateTitle checks a namespace title: 1–512 bytes of UTF-8 without control characters, and not of the form of an id,
// because an id wins over a title wherever either is taken.
func ValidateTitle(title string) error {
	switch {
	case title == "":
		return FieldErrorf(CodeInvalidTitle, "title", "the title is empty; a title has 1 to %d bytes", MaxTitleBytes)
	case len(title) > MaxTitleBytes:
		return FieldErrorf(CodeInvalidTitle, "title", "the title has %d bytes; the limit is %d bytes of UTF-8", len(title), MaxTitleBytes)
	case !utf8.ValidString(title):
		return FieldErrorf(CodeInvalidTitle, "title", "the title is not valid UTF-8")
	case strings.ContainsFunc(title, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return FieldErrorf(CodeInvalidTitle, "title", "the title contains a control character; use printable characters")
	case title == "." || title == "..":
		return FieldErrorf(CodeInvalidTitle, "title", "the title %q is not allowed, because URL clients resolve it away; choose another name", title)
	}
	if _, err := ParseNamespaceID(title); err == nil {
		return FieldErrorf(CodeInvalidTitle, "title", "the title %q looks like a namespace id (32 hex digits); choose a title that cannot be mistaken for one", title)
	}
	return nil
}
