package cache

import (
	"math"

	"github.com/cespare/xxhash/v2"
)

// Candidate is a node that may own keys.
type Candidate struct {
	ID     string
	Weight float64 // relative; 0 counts as 1
}

// Owner chooses the node that fills a key for its whole region: weighted rendezvous hashing (Thaler and Ravishankar,
// 1998; the logarithmic weights of Schindelhauer and Schomaker, 2005). Every node that knows the same candidates chooses
// the same owner, and a candidate that comes or goes moves only its own share of the keys. It returns "" without
// candidates.
func Owner(hash uint64, candidates []Candidate) string {
	best, bestScore := "", math.Inf(-1)
	for _, c := range candidates {
		// The node's own hash is mixed with the key's by a finaliser (splitmix64), to a number in (0, 1).
		x := xxhash.Sum64String(c.ID) ^ hash
		x ^= x >> 30
		x *= 0xbf58476d1ce4e5b9
		x ^= x >> 27
		x *= 0x94d049bb133111eb
		x ^= x >> 31
		u := (float64(x>>11) + 0.5) / (1 << 53)
		weight := c.Weight
		if weight <= 0 {
			weight = 1
		}
		score := -weight / math.Log(u)
		if score > bestScore || (score == bestScore && c.ID < best) {
			best, bestScore = c.ID, score
		}
	}
	return best
}
