package cfrest

import (
	"strings"
	"testing"
)

// Whatever a body is, it is taken as a whole or refused as §1.1 wants, with nothing written.
func FuzzBodies(f *testing.F) {
	for _, body := range []string{
		formBody("value", "v", "metadata", `{"a":1}`), formBody("metadata[a][]", "1", "value", "v"), formBody("metadata.a.0", "1"),
		`[{"key":"k","value":"dg==","base64":true,"expiration_ttl":60,"metadata":[1]}]`, `[{"value":"v","key":"k"},{"key":"k","value":"v"}]`,
		`["k","l"]`, `{"keys":["k"],"type":"json","withMetadata":true}`, `{"title":"t","mode":"instant"}`, "",
	} {
		for kind := range uint8(6) {
			f.Add(kind, body)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, body string) {
		r := newRig(t)
		var method, target string
		var headers []string
		switch kind % 6 {
		case 0:
			method, target, headers = "PUT", "/{ns}/values/k", multi
		case 1:
			method, target = "PUT", "/{ns}/bulk"
		case 2:
			method, target = "DELETE", "/{ns}/bulk"
		case 3:
			method, target = "POST", "/{ns}/bulk/get"
		case 4:
			method, target = "POST", base
		case 5:
			method, target = "PUT", "/{ns}/values/k?expiration_ttl=60"
		}
		w := r.do(method, target, body, headers...)
		text := w.Body.String()
		switch {
		case w.Code == 200:
			if !strings.HasPrefix(text, `{"success":true,"errors":[],`) {
				t.Errorf("%s %s: %s", method, target, text)
			}
		case w.Code < 400 || w.Code >= 500 || r.written > 0:
			t.Errorf("%s %s: %d, %d keys were written: %s", method, target, w.Code, r.written, text)
		default:
			if problem := told(t, text); strings.HasPrefix(problem, "no ") {
				t.Errorf("%s %s: %d %s", method, target, w.Code, problem)
			}
		}
	})
}
