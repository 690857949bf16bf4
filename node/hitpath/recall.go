package hitpath

import "bytes"

const (
	// maxRecalled is the longest block of headers that a connection remembers: those of a browser or a library fit.
	maxRecalled = 640
	// maxFickle is after how many blocks in a row that were different a connection remembers none any more.
	maxFickle = 16
)

// recalled is the last block of headers of a connection, from the end of its request line to the empty line, and what it was
// parsed to. Clients send the same headers with every request, and to compare them is cheaper than to parse them: what is
// the same bytes is the same headers.
type recalled struct {
	n      int // length of text, 0 when there is none
	fickle int
	head   head // as if the block began at 0
	text   [maxRecalled]byte
}

// parse goes on parsing the head that unread begins with.
func (c *conn) parse(unread []byte) verdict {
	began := c.head.next > 0
	if !began && c.recalled.n > 0 && c.recalled.parse(&c.head, unread) {
		return whole
	}
	v := c.head.parse(unread)
	if v == whole && !began {
		c.recalled.note(&c.head, unread)
	}
	return v
}

// parse parses a head whose headers are the ones that are remembered. When it reports false, nothing has been parsed.
func (r *recalled) parse(h *head, unread []byte) bool {
	end := bytes.IndexByte(unread, '\n')
	if end < 1 || unread[end-1] != '\r' || !bytes.HasPrefix(unread[end+1:], r.text[:r.n]) {
		return false
	}
	*h = r.head
	if !h.requestLine(unread[:end-1], 0) {
		*h = head{}
		return false
	}
	h.started, r.fickle = true, 0
	h.shift(end + 1)
	return true
}

// note remembers the headers of a head that was parsed at once.
func (r *recalled) note(h *head, unread []byte) {
	line := bytes.IndexByte(unread, '\n') + 1
	if r.fickle >= maxFickle || h.next-line > maxRecalled {
		r.n = 0
		return
	}
	r.fickle++
	r.n = copy(r.text[:], unread[line:h.next])
	r.head = *h
	r.head.isHEAD, r.head.target = false, span{}
	r.head.shift(-line)
}

// shift moves everything behind the request line.
func (h *head) shift(by int) {
	h.next += by
	h.auth.at, h.auth.end = h.auth.at+by, h.auth.end+by
	h.space.at, h.space.end = h.space.at+by, h.space.end+by
}
