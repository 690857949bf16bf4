package cli

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"kvmesh/node/certs"
)

const membersDoc = `{"leader":"22222222-x","generation":1,"index":9,"members":[
 {"id":"33333333-x","name":"copy","role":"learner","region":"eu-west","state":"alive","vote":"learner","well":true,"behind":2,"heard_ms":12,"missing_blobs":3},
 {"id":"22222222-x","name":"v2","role":"voter","region":"us-east","state":"alive","vote":"yes","heard_ms":0},
 {"id":"11111111-x","name":"v1","role":"voter","region":"eu-west","state":"failed","vote":"yes","heard_ms":61000},
 {"id":"55555555-x","state":"unknown","vote":"yes","heard_ms":-1,"note":"no node of this id has been seen"},
 {"id":"44444444-x","name":"v4","role":"voter","region":"us-east","state":"alive","vote":"none","heard_ms":-1,"note":"this node was removed"}]}`

// TestCluster runs the commands about members against a node that notes what it is asked.
func TestCluster(t *testing.T) {
	f := newFake(t)
	s := newShell(f.URL)
	asked := ""
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		asked = r.Method + " " + r.URL.Path + " " + string(body)
		switch {
		case r.URL.Path == "/v1/cluster/members":
			_, err = io.WriteString(w, membersDoc)
		case strings.Contains(string(body), "v1"):
			w.WriteHeader(http.StatusConflict)
			_, err = io.WriteString(w, `{"error":{"code":"refused","message":"without v1 only 1 of 2 voters would answer"}}`)
		default:
			_, err = io.WriteString(w, `{"node":"22222222-x","name":"v2","done":"it is done"}`)
		}
		if err != nil {
			t.Error(err)
		}
		return true
	}
	golden(t, "cluster-members", s.ok(t, "cluster", "members"))
	for _, step := range []struct {
		args  []string
		asked string
	}{
		{[]string{"join", "v2"}, `POST /v1/cluster/join {"node":"v2","voter":false}`},
		{[]string{"join", "v2", "--voter"}, `POST /v1/cluster/join {"node":"v2","voter":true}`},
		{[]string{"remove", "22222222"}, `POST /v1/cluster/remove {"node":"22222222"}`},
		{[]string{"transfer-leader"}, `POST /v1/cluster/transfer-leader {"node":""}`},
		{[]string{"transfer-leader", "v2"}, `POST /v1/cluster/transfer-leader {"node":"v2"}`},
	} {
		if out := s.ok(t, append([]string{"cluster"}, step.args...)...); out != "v2: it is done\n" || asked != step.asked {
			t.Errorf("%q asked %s, and said %s", step.args, asked, out)
		}
	}
	if r := s.run("cluster", "remove", "v1"); r.code != ExitFailure || !strings.Contains(r.err, "remove v1: without v1 only 1 of 2 voters would answer (refused") {
		t.Errorf("a refusal: %+v", r)
	}
	for _, bad := range [][]string{{"remove"}, {"join"}, {"transfer-leader", "a", "b"}, {"members", "x"}, {"recover"}, {"recover", "--data-dir", "x"}, {"nonsense"}} {
		if r := s.run(append([]string{"cluster"}, bad...)...); r.code != ExitUsage {
			t.Errorf("%q: exit code %d: %s", bad, r.code, r.err)
		}
	}
}

// TestClusterRecoverRefuses what is no data directory, or no survivor's output, before anything is touched.
func TestClusterRecoverRefuses(t *testing.T) {
	s, dir := newShell(""), t.TempDir()
	key, file := filepath.Join(dir, "mesh.key"), filepath.Join(dir, "other.json")
	if err := os.WriteFile(key, []byte(certs.NewMeshKey().Encode()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := s.run("cluster", "recover", "--mesh-key", key, "--data-dir", dir, "--yes")
	if r.code != ExitFailure || !strings.Contains(r.err, dir+" is no node's data directory") {
		t.Errorf("%+v", r)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("it has made files there: %v %v", names, err)
	}
	if err := os.WriteFile(file, []byte(`{"anything":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readSurvivors([]string{file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("not a survivor's output: %v", err)
	}
}
