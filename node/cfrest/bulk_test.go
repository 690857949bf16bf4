package cfrest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// §1.5: what did not come through is named; when nothing did, the call has failed.
func TestUnsuccessfulKeys(t *testing.T) {
	const put = `[{"key":"a","value":"1"},{"key":"b","value":"2"},{"key":"c","value":"3"}]`
	noLeader := &kv.Error{Code: kv.CodeNoLeader, Message: "nobody leads"}
	for _, call := range []struct{ method, target, body string }{
		{"PUT", "/{ns}/bulk", put}, {"POST", "/{ns}/bulk/delete", `["a","b","c"]`},
	} {
		r := newRig(t)
		r.err["b"] = errors.New("the connection broke")
		w := r.do(call.method, call.target, call.body)
		var out struct {
			Success  bool
			Messages []struct{ Code int }
			Result   struct {
				N    int      `json:"successful_key_count"`
				Keys []string `json:"unsuccessful_keys"`
			}
		}
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || w.Code != 200 || !out.Success || out.Result.N != 2 ||
			fmt.Sprint(out.Result.Keys) != "[b]" || len(out.Messages) != 1 {
			t.Errorf("%s: %d %s", call.target, w.Code, w.Body)
		}
		r = newRig(t)
		r.err[all] = noLeader
		w = r.do(call.method, call.target, call.body)
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(told(t, w.Body.String()), "no_leader: nobody leads") {
			t.Errorf("%s without a leader: %d %v %s", call.target, w.Code, w.Header(), w.Body)
		}
	}
}

// What bulk calls hold is bounded over all of them, and given back.
func TestBulkMemory(t *testing.T) {
	r := newRig(t, func(o *Options) { o.BulkMemory = 1 << 20 })
	item := func(n int) string { return `[{"key":"k","value":"` + strings.Repeat("x", n) + `"}]` }
	for range 5 {
		if w := r.do("PUT", "/{ns}/bulk", item(500<<10)); w.Code != 200 {
			t.Fatalf("within the limit: %d %s", w.Code, w.Body)
		}
		if w := r.do("PUT", "/{ns}/bulk", item(2<<20)); w.Code != 503 || !strings.Contains(w.Body.String(), "overloaded") {
			t.Fatalf("beyond the limit: %d %s", w.Code, w.Body)
		}
	}
}

// §1.5: 100 MB a call, whether it is announced or not.
func TestBulkBytes(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MaxBulk = 1_000_000 })
	body := `[{"key":"k","value":"` + strings.Repeat("x", 1_000_000) + `"}]`
	for _, from := range []io.Reader{strings.NewReader(body), io.MultiReader(strings.NewReader(body))} {
		w := r.send("PUT", "/{ns}/bulk", from)
		r.want(w.Code, w.Body.String(), 413, "10029 bulk put keys: 'Total size of request exceeds the limit of 1MB'")
	}
	if r.written != 0 {
		t.Errorf("%d keys were written", r.written)
	}
}

// Base64 is decoded where it stands, line breaks and all.
func TestBase64InPlace(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		value := make([]byte, rng.IntN(3000))
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		coded := base64.StdEncoding.EncodeToString(value)
		if rng.IntN(2) == 0 && len(coded) > 10 {
			at := rng.IntN(len(coded))
			coded = coded[:at] + "\r\n" + coded[at:]
		}
		doc, err := json.Marshal([]map[string]any{{"key": "k", "value": coded, "base64": true}})
		if err != nil {
			t.Fatal(err)
		}
		r := newRig(t)
		if w := r.do("PUT", "/{ns}/bulk", string(doc)); w.Code != 200 || r.has("k") != string(value)+"||0" {
			t.Fatalf("%d bytes: %d %s", len(value), w.Code, w.Body)
		}
	}
}

// Text of any length comes out of a bulk get as it went in: it is written in pieces, which must not cut a character.
func TestBulkGetLongText(t *testing.T) {
	r := newRig(t)
	keys, values := []string{}, map[string]string{}
	for i, char := range []string{"x", "ü", "€", "😀", "<\"\\\n"} {
		key := fmt.Sprint("k", i)
		keys, values[key] = append(keys, key), "x"+strings.Repeat(char, 30_000)
		r.seed(key, values[key], "", 0)
	}
	doc, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	w := r.do("POST", "/{ns}/bulk/get", string(doc))
	var out struct {
		Result struct{ Values map[string]string }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	for key, want := range values {
		if out.Result.Values[key] != want {
			t.Errorf("%s: %d bytes came, %d were stored, or they differ", key, len(out.Result.Values[key]), len(want))
		}
	}
}
