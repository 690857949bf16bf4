package client

import (
	"context"
	"encoding/json"
	"net/http"

	"kvmesh/node/api"
)

// Members lists the voters and learners, as the leader sees them.
func (c *Client) Members(ctx context.Context) (*api.Membership, error) {
	var m api.Membership
	err := c.readJSON(ctx, call{method: http.MethodGet, path: "/v1/cluster/members", repeatable: true}, &m)
	return &m, err
}

// Join takes a node back into the central store, and gives a learner its vote when vote is set.
func (c *Client) Join(ctx context.Context, node string, vote bool) (*api.MembershipChange, error) {
	return c.change(ctx, "join", true, map[string]any{"node": node, "voter": vote})
}

// Remove takes a node out of the central store.
func (c *Client) Remove(ctx context.Context, node string) (*api.MembershipChange, error) {
	return c.change(ctx, "remove", true, map[string]any{"node": node})
}

// TransferLeader hands the leadership to a voter, "" = to the one that is furthest ahead.
func (c *Client) TransferLeader(ctx context.Context, node string) (*api.MembershipChange, error) {
	return c.change(ctx, "transfer-leader", false, map[string]any{"node": node})
}

func (c *Client) change(ctx context.Context, what string, repeatable bool, doc map[string]any) (*api.MembershipChange, error) {
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	body := BytesBody(b)
	var out api.MembershipChange
	err = c.readJSON(ctx, call{
		method: http.MethodPost, path: "/v1/cluster/" + what, body: &body, repeatable: repeatable,
		header: http.Header{"Content-Type": {"application/json"}},
	}, &out)
	return &out, err
}
