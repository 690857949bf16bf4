package cfrest

import (
	"math"
	"net/http"
	"strconv"

	"kvmesh/node/cfkv"
)

// What wrangler and the SDKs ask of an account before they come to the keys. Whoever holds the token may do everything.

const (
	userID    = "00000000000000000000000000000001"
	userEmail = "admin@kvmesh.invalid"
	tokenID   = "00000000000000000000000000000002"
	// defaultPerPage and maxPerPage are those of the API's lists of accounts and namespaces.
	defaultPerPage = 20
	maxPerPage     = 1000
)

type accountDoc struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func (s *surface) user(c *call) error {
	return c.ok(struct {
		ID    string `json:"id"`
		Email string `json:"email"`
	}{userID, userEmail}, nil)
}

// verifyToken answers whoever got past authorise.
func (s *surface) verifyToken(c *call) error {
	e := envelope{
		Success:  true,
		Messages: []message{{Code: 10000, Message: "This API Token is valid and active"}},
		Result: struct {
			ID     string `json:"id"`
			Status string `json:"status"`
		}{tokenID, "active"},
	}
	answer(c.w, c.r, http.StatusOK, e)
	return nil
}

func (s *surface) accounts(c *call) error {
	p, err := c.page()
	if err != nil {
		return err
	}
	a := s.account()
	return listPage(c, p, []accountDoc{accountDoc(a)})
}

func (s *surface) oneAccount(c *call) error {
	return c.ok(accountDoc{c.account, s.account().Name}, nil)
}

func (s *surface) memberships(c *call) error {
	p, err := c.page()
	if err != nil {
		return err
	}
	type membership struct {
		ID      string     `json:"id"`
		Status  string     `json:"status"`
		Account accountDoc `json:"account"`
		Roles   []string   `json:"roles"`
	}
	a := s.account()
	return listPage(c, p, []membership{{a.ID, "accepted", accountDoc(a), []string{"Administrator"}}})
}

// page is what a request wants of a list; both count from 1.
type page struct{ number, size int64 }

func (c *call) page() (p page, err error) {
	if p.number, err = c.natural("page", 1, math.MaxInt64); err != nil {
		return p, err
	}
	p.size, err = c.natural("per_page", defaultPerPage, maxPerPage)
	return p, err
}

// natural is a query parameter that is a number from 1 to most.
func (c *call) natural(name string, def, most int64) (int64, error) {
	text := c.q.Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 || n > most {
		return 0, invalid("", "%s=%s is not a number from 1 to %d", name, cfkv.Shown(text), most)
	}
	return n, nil
}

// listPage answers with one page of all. One past the end is empty: the SDKs ask for the next page until they get none.
func listPage[T any](c *call, p page, all []T) error {
	part := []T{}
	total := int64(len(all))
	if first := p.number - 1; first <= total/p.size {
		from := min(first*p.size, total)
		part = append(part, all[from:min(from+p.size, total)]...)
	}
	return c.ok(part, pageInfo{
		Page: p.number, PerPage: p.size, Count: len(part), TotalCount: len(all), TotalPages: (total + p.size - 1) / p.size,
	})
}
