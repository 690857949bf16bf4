//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// plant is a bug of the server itself, switched on in a binary that was built for it: what is looked for must be found
// when it is there.
type plant struct {
	name, mutant string
	kind         string // of the finding
	// provoke brings it out. It returns once the audit has seen it, or when it gives up.
	provoke func(ctx context.Context, s *session) error
}

const (
	plantLost  = "lose-write"         // one acknowledged write in a hundred is not kept
	plantStale = "confirm-unverified" // whoever believes to lead answers strong reads without asking the others
	// plantWithin bounds the search for a planted bug.
	plantWithin = 60 * time.Second
	// blindFor is how long a leader is cut off while its disk hangs, to bring out stale reads: longer than an election.
	blindFor = 3 * time.Second
)

func plants() []plant {
	return []plant{
		{"a lost write", plantLost, kindLost, func(ctx context.Context, s *session) error {
			for !s.found(kindLost) {
				if !pause(ctx, time.Second) {
					return context.Cause(ctx)
				}
			}
			return nil
		}},
		{"a stale read", plantStale, kindStale, func(ctx context.Context, s *session) error {
			for !s.found(kindStale) {
				leader, err := s.mesh.leader(ctx)
				if err != nil {
					return err
				}
				if _, err := s.blind(ctx, leader, blindFor); err != nil {
					return err
				}
				if err := s.settle(ctx); err != nil {
					return err
				}
				if !pause(ctx, time.Second) {
					return context.Cause(ctx)
				}
			}
			return nil
		}},
	}
}

func (s *session) found(kind string) bool {
	for _, f := range audit(s.rec.history()) {
		if f.kind == kind {
			return true
		}
	}
	return false
}

// runPlanted runs meshes with one bug each. Both the audit and porcupine must find it.
func runPlanted(ctx context.Context, o options, net network, dir string) error {
	for i, p := range plants() {
		began := time.Now()
		s, err := begin(ctx, o, net, filepath.Join(dir, p.mutant), o.mutant, 20*(i+1), "KVMESH_MUTANT="+p.mutant)
		if err != nil {
			return fmt.Errorf("the run with %s planted: %w", p.name, err)
		}
		limited, cancel := context.WithTimeoutCause(ctx, plantWithin, fmt.Errorf("not within %v", plantWithin))
		err = p.provoke(limited, s)
		cancel()
		s.rest()
		r := s.judge(nil)
		err = errors.Join(err, s.end())
		illegal, _ := r.illegal()
		n := 0
		for _, f := range r.findings {
			if f.kind == p.kind {
				n++
			}
		}
		fmt.Printf("planted   %s: %d found by revisions, %d of %d histories not linearizable by porcupine, in %v\n",
			p.name, n, illegal, len(r.verdicts), time.Since(began).Round(time.Second))
		if err == nil && (n == 0 || illegal == 0) {
			err = errors.New("it was not found")
		}
		if err != nil {
			r.details(os.Stdout)
			return fmt.Errorf("the run with %s planted: %w", p.name, err)
		}
	}
	return nil
}
