package state

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// What Pebble is told. Values are sealed and so cannot be compressed or compared; keys are short and looked up by point.
const (
	defaultCacheBytes = 32 << 20
	inspectCacheBytes = 4 << 20 // a checkpoint is read once, from front to back

	// memTableBytes is about a second of heavy writing; up to memTableStop of them may wait to be flushed. Pebble takes
	// their memory out of the block cache, so that the cache is made larger by the usual two: one that is written, one that
	// is flushed.
	memTableBytes = 8 << 20
	memTableStop  = 4
	memTableCache = 2 * memTableBytes
	// bloomBitsPerKey gives one false positive in a hundred: most puts of new keys read no block.
	bloomBitsPerKey = 10
	maxOpenFiles    = 512

	// Separated values are rewritten when a fifth of the separated bytes is garbage, but not while they are so young that
	// they are likely to be overwritten again.
	blobReferenceDepth = 10
	blobRewriteAge     = 5 * time.Minute
	blobGarbageRatio   = 0.2
)

// troubles are told of what Pebble meets in its own goroutines. None of them may block.
type troubles struct {
	damaged, failed func(error)
	full            func()
}

func (t troubles) orNothing() troubles {
	if t.damaged == nil {
		t.damaged = func(error) {}
	}
	if t.failed == nil {
		t.failed = func(error) {}
	}
	if t.full == nil {
		t.full = func() {}
	}
	return t
}

// pebbleOptions returns the options of one database. It does not take a reference to cache.
func pebbleOptions(fs vfs.FS, cache *pebble.Cache, log *slog.Logger, tell troubles) *pebble.Options {
	o := &pebble.Options{
		// The Raft log is the write-ahead log. A second one would be written for nothing, end the process when the disk is
		// full, and lose its end to a flipped bit without a word.
		DisableWAL:                  true,
		FS:                          fs,
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatValueSeparation,
		MemTableSize:                memTableBytes,
		MemTableStopWritesThreshold: memTableStop,
		MaxOpenFiles:                maxOpenFiles,
		Logger:                      pebbleLogger{log},
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) {
				log.Error("state: background work failed", "err", err)
				switch {
				case pebble.IsCorruptionError(err): // DataCorruption was called
				case isFull(err):
					tell.full()
				default: // Pebble would try again without end, on a disk that has lied once
					tell.failed(fmt.Errorf("the state cannot be written: %w", err))
				}
			},
			// Pebble's own answer to a damaged block is Fatalf. Here the read fails, so the damage is never served, and what
			// becomes of the state is for the caller to decide.
			DataCorruption: func(i pebble.DataCorruptionInfo) {
				log.Error("state: a file is damaged", "path", i.Path, "err", i.Details)
				tell.damaged(fmt.Errorf("%w: %s: %w", ErrDamaged, i.Path, i.Details))
			},
			WriteStallBegin: func(i pebble.WriteStallBeginInfo) { log.Warn("state: writes stall", "reason", i.Reason) },
		},
	}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBitsPerKey)
	}
	policy := pebble.ValueSeparationPolicy{
		Enabled:               true,
		MinimumSize:           inlineBytes,
		MaxBlobReferenceDepth: blobReferenceDepth,
		RewriteMinimumAge:     blobRewriteAge,
		TargetGarbageRatio:    blobGarbageRatio,
	}
	o.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy { return policy }
	o.Experimental.SpanPolicyFunc = spanPolicy
	return o
}

// spanPolicy separates values in the spaces of values only: a listing walks heads, and one with metadata and a small value
// can be longer than inlineBytes too.
func spanPolicy(start []byte) (policy pebble.SpanPolicy, end []byte, err error) {
	for _, b := range []*bank{banks[1], banks[0]} { // in byte order
		valueEnd := prefixEnd([]byte(b.value))
		switch {
		case string(start) < b.value:
			return pebble.SpanPolicy{ValueStoragePolicy: pebble.ValueStorageLowReadLatency}, []byte(b.value), nil
		case string(start) < string(valueEnd):
			return pebble.SpanPolicy{}, valueEnd, nil
		}
	}
	return pebble.SpanPolicy{ValueStoragePolicy: pebble.ValueStorageLowReadLatency}, nil, nil
}

// pebbleLogger adapts slog. Pebble's narration of flushes and compactions is for debugging.
type pebbleLogger struct{ log *slog.Logger }

func (l pebbleLogger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble calls it when its manifest cannot be fsynced, and what it holds in memory may differ from
// the disk from then on. The Raft log has everything, so the process ends and starts again.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	msg := "pebble: " + fmt.Sprintf(format, args...)
	l.log.Error(msg)
	panic(msg)
}
