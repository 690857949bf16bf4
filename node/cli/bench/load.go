package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
)

// Load says what is asked.
type Load struct {
	Reads float64 // the share of reads, 0 to 1; the others replace a value
	Keys  int     // bench-00000000 and so on
	// Zipf is the skew of the keys' popularity, below 1: 0 = all alike, 0.99 = YCSB's.
	Zipf float64
	// MedianBytes is the median of the values' sizes. With Spread 0 all are of that size; else they are log-normal, with
	// Spread as the standard deviation of the logarithm. Values end at MaxBytes.
	MedianBytes, MaxBytes int
	Spread                float64
}

// mixes are the core workloads of YCSB (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010) that ask
// for single keys.
var mixes = map[string]float64{"A": 0.5, "B": 0.95, "C": 1}

// Mix is the share of reads of a YCSB workload: A, B or C.
func Mix(name string) (reads float64, err error) {
	reads, ok := mixes[name]
	if !ok {
		return 0, fmt.Errorf("there is no mix %q; use A (half of it reads), B (95 %% reads) or C (reads only)", name)
	}
	return reads, nil
}

func keyName(i int) string { return fmt.Sprintf("bench-%08d", i) }

// size is that of the i-th key's value, the same in every run.
func (l Load) size(i int) int {
	if l.Spread == 0 {
		return min(l.MedianBytes, l.MaxBytes)
	}
	rng := rand.New(rand.NewPCG(uint64(i), 0x6b766d657368))
	return int(min(float64(l.MaxBytes), math.Round(float64(l.MedianBytes)*math.Exp(l.Spread*rng.NormFloat64()))))
}

// picker picks keys by their popularity. It is the generator of Gray et al., "Quickly Generating Billion-Record Synthetic
// Databases" (SIGMOD 1994), which YCSB uses too; the popular keys are spread over all of them. It is immutable.
type picker struct {
	n                  int
	theta, alpha, zeta float64
	eta, half          float64
	spread             uint64 // coprime to n
}

func newPicker(n int, theta float64) *picker {
	p := &picker{n: n, theta: theta, spread: 1}
	for _, prime := range []uint64{2_654_435_761, 2_246_822_519, 3_266_489_917} { // n can be a multiple of one of them, not of all
		if uint64(n)%prime != 0 {
			p.spread = prime
			break
		}
	}
	if theta == 0 {
		return p
	}
	for i := 1; i <= n; i++ {
		p.zeta += math.Pow(float64(i), -theta)
	}
	p.alpha = 1 / (1 - theta)
	p.half = 1 + math.Pow(0.5, theta)
	p.eta = (1 - math.Pow(2/float64(n), 1-theta)) / (1 - p.half/p.zeta)
	return p
}

func (p *picker) pick(rng *rand.Rand) int { return int(uint64(p.rank(rng)) * p.spread % uint64(p.n)) }

// rank is 0 for the most popular key.
func (p *picker) rank(rng *rand.Rand) int {
	if p.theta == 0 || p.n == 1 {
		return rng.IntN(p.n)
	}
	u := rng.Float64()
	switch uz := u * p.zeta; {
	case uz < 1:
		return 0
	case uz < p.half:
		return 1
	}
	return min(int(float64(p.n)*math.Pow(p.eta*u-p.eta+1, p.alpha)), p.n-1)
}
