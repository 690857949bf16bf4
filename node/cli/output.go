package cli

import (
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	ucli "github.com/urfave/cli/v2"
)

func outputFlag() ucli.Flag {
	return &ucli.StringFlag{
		Name: "o", Aliases: []string{"output"}, Value: "table", Usage: "`FORMAT` of the output: table or json",
	}
}

func wantsJSON(c *ucli.Context) (bool, error) {
	switch v := c.String("o"); v {
	case "table":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usagef("-o %q: use table or json", v)
	}
}

// newTable returns a table without lines, which can be read, cut and grepped.
func newTable() table.Writer {
	t := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "   "
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	return t
}

// printJSON writes one document, indented.
func (r *run) printJSON(doc any) error { return writeJSONTo(r.Out, doc) }

func writeJSONTo(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(doc)
}

// printable is s as it is, or quoted if it would not show up as what it is: control characters, among them those that
// command a terminal, blanks at an end, bytes that are not UTF-8.
func printable(s string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(s) || strings.TrimSpace(s) != s || strings.ContainsFunc(s, odd) || strings.HasPrefix(s, `"`) {
		return strconv.Quote(s)
	}
	return s
}

// humanBytes is a size for people: three digits at most, and a unit.
func humanBytes(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, units := float64(n), "KMGTPE"
	i := -1
	for v >= 1023.5 { // so that rounding never shows 1024
		v /= 1024
		i++
	}
	decimals := 0
	if v < 9.95 {
		decimals = 1
	}
	return strconv.FormatFloat(v, 'f', decimals, 64) + " " + units[i:i+1] + "iB"
}

// humanDuration is a length of time for people, in its largest unit or two.
func humanDuration(d time.Duration) string {
	if d < 0 {
		return "-" + humanDuration(-d)
	}
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < time.Minute:
		return strconv.FormatInt(int64(d/time.Second), 10) + " s"
	case d < time.Hour:
		return two(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return two(d, time.Hour, "h", time.Minute, "m")
	case d < 365*day:
		return two(d, day, "d", time.Hour, "h")
	}
	return two(d, 365*day, "y", day, "d")
}

func two(d, big time.Duration, bigName string, small time.Duration, smallName string) string {
	s := strconv.FormatInt(int64(d/big), 10) + bigName
	if rest := d % big / small; rest > 0 {
		s += strconv.FormatInt(int64(rest), 10) + smallName
	}
	return s
}

// shorten cuts s to at most n runes for a table.
func shorten(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}
