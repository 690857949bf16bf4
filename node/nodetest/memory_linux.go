package nodetest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// RssAnon is the memory of the node's process that no file backs, in bytes: what it has allocated and not given back.
func (n *Proc) RssAnon() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no RssAnon in its status", n.Name)
}
