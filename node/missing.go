package node

// MissingBlobs is how many large values this node's state names and its disk lacks. No learner is given a vote, and no other
// voter is removed, while it is not 0. Edges have none.
func (n *Node) MissingBlobs() int {
	if n.missing == nil {
		return 0
	}
	return n.missing()
}
