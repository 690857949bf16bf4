package hitpath

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"kvmesh/node/api"
	"kvmesh/raftstore/kv"
)

// TestLargeProgress: a large value goes out by as few writes as the kernel takes it in, and the limit of a write counts from what
// the client took last, not from the beginning. It moves the path's clock by hand.
func TestLargeProgress(t *testing.T) {
	f := newFake()
	value := bytes.Repeat([]byte("0123456789abcdef"), kv.MaxValueBytes/16)
	f.held["big"] = api.Value{Epoch: epoch, Revision: 7, AsOf: 12, Size: int64(len(value)), Bytes: value, Tier: api.TierHit}
	s, dial := onTCP(t, f)
	c := dial()
	send(t, c, get("/v1/kv/default/big"))
	counted(t, s, 1)
	var served *conn
	s.mu.Lock()
	for one := range s.conns {
		served = one
	}
	s.mu.Unlock()
	// since waits until the connection is in phaseWrite since the given second or later.
	since := func(tick uint64) {
		t.Helper()
		for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
			word := served.standing.word.Load()
			if phase(word&7) == phaseWrite && word>>3 >= tick {
				return
			}
			if time.Since(began) > patience {
				t.Fatalf("phase %d since second %d, want a write since %d", word&7, word>>3, tick)
			}
		}
	}
	since(0)
	var got bytes.Buffer
	for range 3 { // of a client that takes a part of it every 25 seconds
		later := s.tick.Add(25)
		if _, err := io.CopyN(&got, c, 3<<20); err != nil {
			t.Fatal(err)
		}
		since(later)
	}
	stalled := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() { // minutes pass, until what was on its way when it stopped is out
		for {
			select {
			case <-stalled:
				return
			case <-time.After(20 * time.Millisecond):
				s.tick.Add(60)
			}
		}
	})
	counted(t, s, 0)
	close(stalled)
	clock.Wait()
	_, err := io.Copy(&got, c)
	_, body, _ := strings.Cut(got.String(), "\r\n\r\n")
	if len(body) >= len(value) || !strings.HasPrefix(string(value), body) {
		t.Errorf("a client that has stopped got %d bytes of %d, %v", len(body), len(value), err)
	}

	c = dial() // all of it to one that reads
	send(t, c, get("/v1/kv/default/big")+get("/v1/kv/default/k"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got.Reset()
	if _, err := io.Copy(&got, c); err != nil {
		t.Fatal(err)
	}
	_, body, _ = strings.Cut(got.String(), "\r\n\r\n")
	if !strings.HasPrefix(body, string(value)+"HTTP/1.1 200 OK\r\n") || !strings.HasSuffix(body, "\r\n\r\nvalue of k") {
		t.Errorf("%d bytes, not the value and the next answer", len(body))
	}
}
