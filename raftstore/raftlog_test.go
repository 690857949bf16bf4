package raftstore

import (
	"testing"

	"github.com/hashicorp/raft"
)

func TestLogMeter(t *testing.T) {
	log := raft.NewInmemStore()
	var logs []*raft.Log
	for i := uint64(1); i <= 1000; i++ {
		logs = append(logs, &raft.Log{Index: i, Data: make([]byte, 1000-entryOverhead)})
	}
	if err := log.StoreLogs(logs); err != nil {
		t.Fatal(err)
	}
	counted := &logMeter{chunks: make(map[uint64]int64)}
	counted.add(logs)
	estimated, err := newLogMeter(log, 400)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]*logMeter{"counted": counted, "estimated": estimated} {
		if got := m.bytes(); got != 1e6 {
			t.Errorf("%s: %d bytes", name, got)
		}
		if got := m.trailing(100_000, 1<<20); got < 100-meterChunk || got > 100 {
			t.Errorf("%s: %d entries in 100 kB", name, got)
		}
		if got := m.trailing(1<<40, 50); got != 50 {
			t.Errorf("%s: limit ignored: %d", name, got)
		}
		m.drop(1, 500)
		if got := m.bytes(); got < 490_000 || got > 510_000 {
			t.Errorf("%s: %d bytes after the first half has gone", name, got)
		}
		if got := m.trailing(1<<40, 1<<20); got < 480 || got > 500+meterChunk {
			t.Errorf("%s: %d entries are left", name, got)
		}
	}
	if bytes, entries := estimated.since(); entries != 600 || bytes != 600_000 {
		t.Errorf("since the snapshot: %d bytes, %d entries", bytes, entries)
	}
}

// Requests are cut by bytes, and what is left out comes with the next one.
func TestFitting(t *testing.T) {
	var logs []*raft.Log
	for range 10 {
		logs = append(logs, &raft.Log{Data: make([]byte, maxAppendBytes/4)})
	}
	if got := len(fitting(logs)); got != 4 {
		t.Errorf("%d entries fit", got)
	}
	if got := len(fitting([]*raft.Log{{Data: make([]byte, 2*maxAppendBytes)}})); got != 1 {
		t.Errorf("an entry above the limit: %d", got)
	}
	if got := fitting(nil); got != nil {
		t.Errorf("a heartbeat: %v", got)
	}
}
