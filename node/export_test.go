package node

// SetMissing replaces what counts the large values that a node has to fetch yet. The node must not have been started.
func (n *Node) SetMissing(count func() int) { n.missing = count }
