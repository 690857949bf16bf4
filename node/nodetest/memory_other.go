//go:build !linux

package nodetest

// RssAnon is not known on this system.
func (n *Proc) RssAnon() (int64, error) { return 0, nil }
