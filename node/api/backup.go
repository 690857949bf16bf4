package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// Backups is what the surface asks of a node for backups of the whole mesh. Every method may block until ctx ends, returns
// *kv.Error values for everything a client can be told, and is safe for concurrent use.
type Backups interface {
	// Save begins a backup of a state that holds everything acknowledged before the call; with stale, of whatever a voter
	// has. The caller reads Body to its end, where io.EOF says that it is whole, and closes it. ctx spans the reading.
	Save(ctx context.Context, stale bool) (*Backup, error)
	// Restore replaces the content of the mesh by the backup that Body gives. Any error but CodeOutcomeUnknown says that
	// nothing was changed and nothing will be. It does not read Body before the mesh is ready for it.
	Restore(ctx context.Context, req RestoreRequest) (*Restored, error)
	// Address is what a backup of another mesh must be sealed for; see seal.KEK.Address.
	Address() []byte
}

// Backup is a backup that is being made.
type Backup struct {
	Body     io.ReadCloser
	Epoch    kv.Epoch
	Revision kv.Revision
	// Estimate is about how many bytes will come.
	Estimate int64
	// GivenUp is closed when it will not be finished, so that nobody waits on for a slow client. nil = never.
	GivenUp <-chan struct{}
}

// RestoreRequest restores a backup.
type RestoreRequest struct {
	Body io.Reader
	// Replace allows it to take the place of data.
	Replace bool
}

// Restored is the outcome of a restore: what the mesh holds, and in which history. From is the revision of the backup.
type Restored struct {
	Epoch       kv.Epoch
	Revision    kv.Revision
	From        kv.Revision
	Namespaces  uint64
	Keys        uint64
	Bytes       uint64 // of keys and values
	LargeValues uint64
}

// The query parameters.
const (
	paramStale   = "stale"
	paramReplace = "replace"
)

// backupRoutes are the calls for backups.
func backupRoutes() []resource {
	return []resource{
		{"/v1/backup", map[string]endpoint{
			http.MethodGet:  {"backup_save", []string{paramStale}, (*surface).saveBackup},
			http.MethodPost: {"backup_restore", []string{paramReplace}, (*surface).restoreBackup},
		}},
		{"/v1/backup/address", map[string]endpoint{
			http.MethodGet: {"backup_address", nil, (*surface).backupAddress},
		}},
	}
}

func (s *surface) hasBackups() error {
	if s.backups == nil {
		return kv.Errorf(kv.CodeUnsupportedByPeer, "this node makes no backups")
	}
	return nil
}

// yes reads a parameter that is true or false, and false when it is missing.
func (q params) yes(name string) (bool, error) {
	text, ok := q.get(name)
	if ok && text != "true" && text != "false" {
		return false, kv.FieldErrorf(kv.CodeInvalidParameter, name, "%s=%s is neither true nor false", name, shown(text))
	}
	return text == "true", nil
}

// saveBackup streams a backup. One that cannot be finished is cut, and lacks its end.
func (s *surface) saveBackup(c *call) error {
	stale, err := c.q.yes(paramStale)
	if err != nil {
		return err
	}
	if err := s.hasBackups(); err != nil {
		return err
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if c.r.Method == http.MethodHead { // to know what it would be is not worth making one
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	ctx, touch, stop := idleContext(c.r.Context(), s.timeout)
	defer stop()
	bk, err := s.backups.Save(ctx, stale)
	if err != nil {
		return err
	}
	bookmarkHeader(h, bk.Epoch, bk.Revision)
	h.Set("Kv-Revision", strconv.FormatUint(uint64(bk.Revision), 10))
	h.Set("Kv-Estimated-Bytes", strconv.FormatInt(bk.Estimate, 10))
	c.w.WriteHeader(http.StatusOK)
	defer cutWhen(bk.GivenUp, http.NewResponseController(c.w))()
	return errors.Join(s.streamAll(c, &touchingBody{ReadCloser: bk.Body, touch: touch}), bk.Body.Close())
}

// cutAgain is how often a write is cut that nobody wants to wait for: each piece of an answer gets a new deadline.
const cutAgain = 50 * time.Millisecond

// cutWhen cuts the writes of an answer once given up is closed. The function returned ends that.
func cutWhen(givenUp <-chan struct{}, rc *http.ResponseController) (stop func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-givenUp:
		case <-ended:
			return
		}
		for {
			_ = rc.SetWriteDeadline(time.Unix(1, 0)) // fails where there is no connection, or it is closed
			select {
			case <-ended:
				return
			case <-time.After(cutAgain):
			}
		}
	})
	return func() {
		close(ended)
		wg.Wait()
	}
}

// streamAll copies a body to the client through one buffer, up to its end.
func (s *surface) streamAll(c *call, body io.Reader) error {
	buf := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buf)
	for {
		n, err := body.Read(*buf)
		if n > 0 {
			if _, werr := c.w.Write((*buf)[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// restoredDoc is the answer to a restore.
type restoredDoc struct {
	Epoch       string      `json:"epoch"`
	Revision    kv.Revision `json:"revision"`
	Bookmark    string      `json:"bookmark"`
	From        kv.Revision `json:"from_revision"`
	Namespaces  uint64      `json:"namespaces"`
	Keys        uint64      `json:"keys"`
	Bytes       uint64      `json:"bytes"`
	LargeValues uint64      `json:"large_values"`
}

// restoreBackup takes a backup. It has no time limit as a whole: a body that stands still is cut by its deadline, and the
// service limits every step of its own.
func (s *surface) restoreBackup(c *call) error {
	replace, err := c.q.yes(paramReplace)
	if err != nil {
		return err
	}
	if err := s.hasBackups(); err != nil {
		return err
	}
	if err := plainEncoding(c.r); err != nil {
		return err
	}
	body := &uploadBody{r: c.r.Body}
	res, err := s.backups.Restore(c.r.Context(), RestoreRequest{Body: body, Replace: replace})
	if err != nil {
		if c.r.ProtoMajor == 1 { // the rest of the body is not wanted
			c.w.Header().Set("Connection", "close")
		}
		return err
	}
	bookmarkHeader(c.w.Header(), res.Epoch, res.Revision)
	writeJSON(c.w, c.r, http.StatusOK, restoredDoc{
		Epoch: res.Epoch.String(), Revision: res.Revision, From: res.From,
		Bookmark:   kv.Bookmark{Epoch: res.Epoch, Revision: res.Revision}.String(),
		Namespaces: res.Namespaces, Keys: res.Keys, Bytes: res.Bytes, LargeValues: res.LargeValues,
	})
	return nil
}

// uploadBody says in plain words why a body could not be read.
type uploadBody struct {
	r    io.Reader
	read int64
}

func (b *uploadBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.read += int64(n)
	switch {
	case err == nil, err == io.EOF:
		return n, err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the upload stalled after %d bytes; nothing was restored", b.read)
	}
	return n, kv.FieldErrorf(kv.CodeInvalidBody, "body", "the upload broke off after %d bytes (%v); nothing was restored", b.read, err)
}

// addressDoc tells for whom a backup has to be sealed.
type addressDoc struct {
	Key     string `json:"key"`
	Address string `json:"address"`
}

func (s *surface) backupAddress(c *call) error {
	if err := s.hasBackups(); err != nil {
		return err
	}
	address := s.backups.Address()
	key, err := seal.AddressID(address)
	if err != nil {
		return fmt.Errorf("own address: %w", err)
	}
	writeJSON(c.w, c.r, http.StatusOK, addressDoc{key, base64.StdEncoding.EncodeToString(address)})
	return nil
}
