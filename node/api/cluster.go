package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"kvmesh/raftstore/kv"
)

// ClusterAdmin changes who belongs to the central store. Nodes are named by id, the beginning of an id, or name. Changes are
// made by the leader, whichever node is asked, and may be repeated. CodeRefused says that a change would do harm and what has
// to be done first; CodeInvalidParameter that no node, or more than one, is called so.
type ClusterAdmin interface {
	Members(ctx context.Context) (*Membership, error)
	// Join takes a node back that was removed; with vote a learner becomes a voter.
	Join(ctx context.Context, node string, vote bool) (*MembershipChange, error)
	Remove(ctx context.Context, node string) (*MembershipChange, error)
	// TransferLeader hands leadership to a voter, "" = to the one that is furthest ahead.
	TransferLeader(ctx context.Context, node string) (*MembershipChange, error)
}

// The votes of a member.
const (
	VoteYes     = "yes"
	VotePending = "pending" // a voter that has not caught up yet
	VoteLearner = "learner" // for good, unless an operator says otherwise
	VoteNone    = "none"    // no member
)

// Membership is who belongs to the central store, as the leader says it.
type Membership struct {
	Leader     string          `json:"leader"`
	Generation uint64          `json:"generation"` // 1, and one more for every recovery from a lost quorum; 0 = not known
	Index      uint64          `json:"index"`      // of the log entry that says so
	Members    []MembershipRow `json:"members"`
	// Error says why this is not the leader's word, when it is not.
	Error string `json:"error,omitempty"`
}

// MembershipRow is one voter or learner, or a node that would be one.
type MembershipRow struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Role   string `json:"role"` // as it was started
	Region string `json:"region"`
	State  string `json:"state"` // alive, suspect, failed, left; unknown when gossip has never seen it
	Peer   string `json:"peer"`
	Vote   string `json:"vote"`
	Well   bool   `json:"well"` // it answers, and is close to the end of the log
	// Behind is how many log entries it lacks; HeardMs how long ago it answered the leader, -1 when nobody can say.
	Behind       uint64 `json:"behind"`
	HeardMs      int64  `json:"heard_ms"`
	MissingBlobs int    `json:"missing_blobs"` // large values that it has to fetch yet
	Note         string `json:"note,omitempty"`
}

// MembershipChange is what was done.
type MembershipChange struct {
	Node string `json:"node,omitempty"` // id
	Name string `json:"name,omitempty"`
	Done string `json:"done"` // for people
}

// clusterRoutes are the resources below /v1/cluster.
func clusterRoutes() []resource {
	return []resource{
		{"/v1/cluster/members", map[string]endpoint{http.MethodGet: {"cluster_members", nil, (*surface).clusterMembers}}},
		{"/v1/cluster/join", map[string]endpoint{http.MethodPost: {"cluster_join", nil, (*surface).clusterJoin}}},
		{"/v1/cluster/remove", map[string]endpoint{http.MethodPost: {"cluster_remove", nil, (*surface).clusterRemove}}},
		{"/v1/cluster/transfer-leader", map[string]endpoint{http.MethodPost: {"cluster_transfer", nil, (*surface).clusterTransfer}}},
	}
}

func (s *surface) clusterMembers(c *call) error {
	ctx, cancel := s.ask(c)
	defer cancel()
	admin, err := s.clusterAdmin()
	if err != nil {
		return err
	}
	m, err := admin.Members(ctx)
	if err != nil {
		return err
	}
	writeJSON(c.w, c.r, http.StatusOK, m)
	return nil
}

func (s *surface) clusterAdmin() (ClusterAdmin, error) {
	if s.admin == nil {
		return nil, errors.New("this node has no cluster administration")
	}
	return s.admin, nil
}

func (s *surface) clusterJoin(c *call) error {
	return s.changeCluster(c, true, func(ctx context.Context, a ClusterAdmin, req changeRequest) (*MembershipChange, error) {
		return a.Join(ctx, req.Node, req.Voter)
	})
}

func (s *surface) clusterRemove(c *call) error {
	return s.changeCluster(c, true, func(ctx context.Context, a ClusterAdmin, req changeRequest) (*MembershipChange, error) {
		return a.Remove(ctx, req.Node)
	})
}

func (s *surface) clusterTransfer(c *call) error {
	return s.changeCluster(c, false, func(ctx context.Context, a ClusterAdmin, req changeRequest) (*MembershipChange, error) {
		return a.TransferLeader(ctx, req.Node)
	})
}

// changeRequest is the body of a change.
type changeRequest struct {
	Node  string
	Voter bool
}

func (s *surface) changeCluster(
	c *call, needsNode bool, change func(context.Context, ClusterAdmin, changeRequest) (*MembershipChange, error),
) error {
	req, err := readChange(c.r)
	if err != nil {
		return err
	}
	if needsNode && req.Node == "" {
		return kv.FieldErrorf(kv.CodeInvalidParameter, "node", "the node is not named; send {\"node\": \"…\"}")
	}
	admin, err := s.clusterAdmin()
	if err != nil {
		return err
	}
	ctx, cancel := s.ask(c)
	defer cancel()
	done, err := change(ctx, admin, req)
	if err != nil {
		return writeFailed(err)
	}
	writeJSON(c.w, c.r, http.StatusOK, done)
	return nil
}

// maxChangeBody is more than the name of a node can take, with every byte escaped.
const maxChangeBody = 4 << 10

// readChange reads {"node": "…", "voter": true}, strictly.
func readChange(r *http.Request) (changeRequest, error) {
	var req changeRequest
	if err := plainEncoding(r); err != nil {
		return req, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxChangeBody+1))
	switch {
	case err != nil:
		return req, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body could not be read: %v", err)
	case len(body) > maxChangeBody:
		return req, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body has more than %d bytes; send {\"node\": \"…\"}", maxChangeBody)
	}
	if body = bytes.TrimSpace(body); len(body) == 0 {
		return req, nil
	}
	var fields map[string]json.RawMessage // not a struct: decoding into one takes {"NODE"} for a node
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return req, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the body is not a JSON object; send {\"node\": \"…\"}")
	}
	for name, raw := range fields {
		var err error
		switch name {
		case "node":
			err = json.Unmarshal(raw, &req.Node)
		case "voter":
			err = json.Unmarshal(raw, &req.Voter)
		default:
			return req, kv.FieldErrorf(kv.CodeInvalidBody, shown(name), "the field is unknown; there are node and voter")
		}
		if err != nil {
			return req, kv.FieldErrorf(kv.CodeInvalidBody, name, "node is a string, voter is true or false")
		}
	}
	return req, nil
}
