package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes.
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

func units() []struct {
	name  string
	bytes Size
} {
	return []struct {
		name  string
		bytes Size
	}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}
}

// ParseSize reads a size such as 256MiB, 1.5GiB or 4096 (bytes). Decimal units are refused rather than guessed at.
func ParseSize(s string) (Size, error) {
	number, unit := strings.TrimSpace(s), Size(1)
	for _, u := range units() {
		if rest, ok := cutSuffixFold(number, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !(n >= 0) || strings.ContainsAny(number, "eEpPxX_nN") {
		return 0, fmt.Errorf("%q is not a size; write a number and B, KiB, MiB, GiB or TiB, for example 256MiB", s)
	}
	if n *= float64(unit); n >= math.MaxInt64 {
		return 0, fmt.Errorf("%q is more than fits into 63 bits", s)
	}
	return Size(n), nil
}

// String is the size in the largest unit that divides it, so that ParseSize reads the same number back.
func (s Size) String() string {
	if s == 0 {
		return "0B"
	}
	for _, u := range units() {
		if s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

func cutSuffixFold(s, suffix string) (string, bool) {
	if len(s) < len(suffix) || !strings.EqualFold(s[len(s)-len(suffix):], suffix) {
		return s, false
	}
	return s[:len(s)-len(suffix)], true
}
