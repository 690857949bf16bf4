package cfkv

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kvmesh/raftstore/kv"
)

var testNow = time.Unix(1_900_000_000, 900_000_000)

func text(p *Problem) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(p.Status, " ", p.Text)
}

// The texts are those of KV-contract §2.5.
func TestTexts(t *testing.T) {
	const past = ". Please specify integer greater than the current number of seconds since the UNIX epoch."
	long := strings.Repeat("k", 513)
	expiry := func(ttl, at string) string {
		n, p := Expiry(ttl, at, testNow)
		if p == nil {
			return fmt.Sprint(n - testNow.Unix())
		}
		return text(p)
	}
	cache := func(s string) string {
		d, p := CacheTTL(s)
		if p == nil {
			return d.String()
		}
		return text(p)
	}
	limit := func(s string) string {
		n, p := ListLimit(s)
		if p == nil {
			return fmt.Sprint(n)
		}
		return text(p)
	}
	for _, tc := range []struct{ got, want string }{
		{text(CheckKey("k")), ""},
		{text(CheckKey(long[1:])), ""},
		{text(CheckKey("")), "400 Key names must not be empty"},
		{text(CheckKey(".")), `400 Illegal key name ".". Please use a different name.`},
		{text(CheckKey("..")), `400 Illegal key name "..". Please use a different name.`},
		{text(CheckKey(long)), "414 UTF-8 encoded length of 513 exceeds key length limit of 512."},
		{text(CheckKey("\xff")), "400 Could not URL-decode key name"},
		{text(CheckPrefix("")), ""},
		{text(CheckPrefix(".")), ""},
		{text(CheckPrefix(long)), "414 UTF-8 encoded length of 513 exceeds key length limit of 512."},
		{expiry("", ""), fmt.Sprint(-testNow.Unix())}, // never
		{expiry("60", "1"), "60"},                     // the lifetime wins, the other is not looked at
		{expiry("60.0", ""), "60"},
		{expiry("59", ""), "400 Invalid expiration_ttl of 59. Expiration TTL must be at least 60."},
		{expiry("0", ""), "400 Invalid expiration_ttl of 0. Please specify integer greater than 0."},
		{expiry("-1", ""), "400 Invalid expiration_ttl of -1. Please specify integer greater than 0."},
		{expiry("60.5", ""), "400 Invalid expiration_ttl of 60.5. Please specify integer greater than 0."},
		{expiry("1m", ""), "400 Invalid expiration_ttl of 1m. Please specify integer greater than 0."},
		{expiry("", "1900000060"), "60"},
		{expiry("", "1900000059"), "400 Invalid expiration of 1900000059. Expiration times must be at least 60 seconds in the future."},
		{expiry("", "1900000000"), "400 Invalid expiration of 1900000000" + past},
		{expiry("", "soon\r\nX: y"), "400 Invalid expiration of soon??X: y" + past},
		{expiry("", "99999999999999999999"), fmt.Sprint(maxExpiration - testNow.Unix())},
		{expiry("99999999999999999999", ""), fmt.Sprint(maxExpiration - testNow.Unix())},
		{cache(""), "1m0s"},
		{cache("30"), "30s"},
		{cache("29"), "400 Invalid cache_ttl of 29. Cache TTL must be at least 30."},
		{cache("x"), "400 Invalid cache_ttl of x. Cache TTL must be at least 30."},
		{cache("9007199254740991"), "2562047h47m16s"}, // Number.MAX_SAFE_INTEGER
		{limit(""), "1000"},
		{limit("1"), "1"},
		{limit("0"), "400 Invalid key_count_limit of 0. Please specify an integer greater than 0."},
		{limit("1001"), "400 Invalid key_count_limit of 1001. Please specify an integer less than 1000."},
		{text(MetadataTooLarge(1025)), "413 Metadata length of 1025 exceeds limit of 1024."},
		{text(ValueTooLarge(26214401)), "413 Value length of 26214401 exceeds limit of 26214400."},
		{text(CheckBulkGet(100, "json")), ""},
		{text(CheckBulkGet(101, "text")), "400 You can request a maximum of 100 keys"},
		{text(CheckBulkGet(0, "text")), "400 You must request a minimum of 1 key"},
		{text(CheckBulkGet(1, "x")), `400 "x" is not a valid type. Use "json" or "text"`},
		{text(NotOfType("json")), "400 At least one of the requested keys corresponds to a non-json value"},
		{text(BulkGetTooLarge()), "413 Total size of request exceeds the limit of 25MB"},
		{Shown(strings.Repeat("ü", 40)), strings.Repeat("ü", 32) + "…"},
	} {
		if tc.got != tc.want {
			t.Errorf("got  %s\nwant %s", tc.got, tc.want)
		}
	}
}

// One write a second to a key (KV-contract §4): refused just before, allowed exactly after it.
func TestWriteLimit(t *testing.T) {
	now := testNow
	l := NewWriteLimit(func() time.Time { return now })
	a, b := kv.NamespaceID{1}, kv.NamespaceID{2}
	want := func(allowed bool, ns kv.NamespaceID, key string) {
		t.Helper()
		if l.Allow(ns, key) != allowed {
			t.Errorf("%s of %v at %v: want allowed=%v", key, ns, now.Sub(testNow), allowed)
		}
	}
	want(true, a, "k")
	want(false, a, "k")
	want(true, b, "k")
	want(true, a, "other")
	now = now.Add(600 * time.Millisecond)
	want(true, a, "later")
	now = now.Add(time.Second - 600*time.Millisecond - 1)
	want(false, a, "k")
	now = now.Add(1)
	want(true, a, "k") // what was refused did not count
	want(false, a, "later")
	want(false, a, "k")
	now = now.Add(time.Hour)
	want(true, a, "k")

	// The table is bounded.
	for i := range 3 * maxRemembered {
		l.Allow(b, fmt.Sprint(i))
	}
	if n := len(l.young) + len(l.old); n > 2*maxRemembered {
		t.Errorf("%d writes are remembered, the limit is %d", n, 2*maxRemembered)
	}

	var none *WriteLimit
	for range 2 {
		if !none.Allow(a, "k") {
			t.Error("no limit refuses")
		}
	}
}
