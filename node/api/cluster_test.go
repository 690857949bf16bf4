package api

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"kvmesh/raftstore/kv"
)

// fakeAdmin notes what it was asked.
type fakeAdmin struct {
	asked []string
	err   error
}

func (a *fakeAdmin) Members(context.Context) (*Membership, error) {
	return &Membership{Leader: "n1", Generation: 1, Members: []MembershipRow{{ID: "n1", Vote: VoteYes}}}, a.err
}

func (a *fakeAdmin) did(what string) (*MembershipChange, error) {
	a.asked = append(a.asked, what)
	return &MembershipChange{Node: "n2", Done: what}, a.err
}

func (a *fakeAdmin) Join(_ context.Context, node string, vote bool) (*MembershipChange, error) {
	if vote {
		node += " with a vote"
	}
	return a.did("join " + node)
}

func (a *fakeAdmin) Remove(_ context.Context, node string) (*MembershipChange, error) {
	return a.did("remove " + node)
}

func (a *fakeAdmin) TransferLeader(_ context.Context, node string) (*MembershipChange, error) {
	return a.did("transfer to " + node)
}

func TestClusterChanges(t *testing.T) {
	admin := &fakeAdmin{}
	r := newRig(t, func(o *Options) { o.Admin = admin })
	for _, step := range []struct {
		path, body string
		status     int
		code       kv.Code
		field, did string
	}{
		{"join", `{"node":"n2"}`, 200, "", "", "join n2"},
		{"join", `{"node":"n2","voter":true}`, 200, "", "", "join n2 with a vote"},
		{"remove", ` {"node":"n2"} `, 200, "", "", "remove n2"},
		{"transfer-leader", `{"node":"n2"}`, 200, "", "", "transfer to n2"},
		{"transfer-leader", ``, 200, "", "", "transfer to "},
		{"join", ``, 400, kv.CodeInvalidParameter, "node", ""},
		{"remove", `{}`, 400, kv.CodeInvalidParameter, "node", ""},
		{"remove", `{"NODE":"n2"}`, 400, kv.CodeInvalidBody, "NODE", ""},
		{"remove", `{"node":7}`, 400, kv.CodeInvalidBody, "node", ""},
		{"join", `{"node":"n2","voter":"yes"}`, 400, kv.CodeInvalidBody, "voter", ""},
		{"remove", `"n2"`, 400, kv.CodeInvalidBody, "body", ""},
		{"remove", `{"node":"` + strings.Repeat("x", 8<<10) + `"}`, 400, kv.CodeInvalidBody, "body", ""},
	} {
		before := len(admin.asked)
		w := r.do("POST", "/v1/cluster/"+step.path, step.body)
		if step.code != "" {
			r.want(w, step.status, step.code, step.field)
			if len(admin.asked) != before {
				t.Errorf("%s %.40s was carried out", step.path, step.body)
			}
			continue
		}
		var doc MembershipChange
		if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != step.status || doc.Done != step.did {
			t.Errorf("%s %s: %d %s", step.path, step.body, w.Code, w.Body)
		}
	}
	admin.err = kv.Errorf(kv.CodeRefused, "n3 is down: start it again")
	r.want(r.do("POST", "/v1/cluster/remove", `{"node":"n2"}`), http.StatusConflict, kv.CodeRefused, "")

	admin.err = nil
	var m Membership
	if w := r.do("GET", "/v1/cluster/members", ""); json.Unmarshal(w.Body.Bytes(), &m) != nil || len(m.Members) != 1 || m.Members[0].Vote != VoteYes {
		t.Errorf("members: %d %s", w.Code, w.Body)
	}
}
