//go:build linux

package main

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"os"
)

// saved is an operation as it is kept on disk.
type saved struct {
	ID                   uint32
	Client, Pair         int
	Keys                 [2]savedTouch
	Outcome              outcome
	Code, Node, Epoch    string
	AsOf                 uint64
	Call, Ret, Staleness int64
	Cached               bool
	Tier                 string
	Bookmark             uint64
}

type savedTouch struct {
	Does   action
	Demand demand
	Expect uint64
	Value  uint32
	Rev    uint64
	Failed bool
}

// keep writes a history to a file, so that a finding can be looked at again; see recheck.
func keep(path string, history []*op) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	all := make([]saved, len(history))
	for i, o := range history {
		all[i] = saved{
			ID: o.id, Client: o.client, Pair: o.pair, Outcome: o.outcome, Code: o.code, Node: o.node, Epoch: o.epoch, AsOf: o.asOf,
			Call: o.call, Ret: o.ret, Cached: o.cached, Tier: o.tier, Staleness: o.staleness, Bookmark: o.bookmark,
		}
		for k, t := range o.keys {
			all[i].Keys[k] = savedTouch{t.does, t.demand, t.expect, t.value, t.rev, t.failed}
		}
	}
	return errors.Join(gob.NewEncoder(w).Encode(all), w.Flush())
}

// recheck judges a history that was kept, without a mesh.
func recheck(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var all []saved
	if err := gob.NewDecoder(bufio.NewReader(f)).Decode(&all); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	rec := newRecorder()
	for _, s := range all {
		o := &op{
			id: s.ID, client: s.Client, pair: s.Pair, outcome: s.Outcome, code: s.Code, node: s.Node, epoch: s.Epoch, asOf: s.AsOf,
			call: s.Call, ret: s.Ret, cached: s.Cached, tier: s.Tier, staleness: s.Staleness, bookmark: s.Bookmark,
		}
		for k, t := range s.Keys {
			o.keys[k] = touch{t.Does, t.Demand, t.Expect, t.Value, t.Rev, t.Failed}
		}
		rec.ops = append(rec.ops, o)
	}
	s := &session{world: &world{rec: rec}}
	r := s.judge(nil)
	r.print(os.Stdout)
	return r.err(true)
}
