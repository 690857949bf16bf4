package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"kvmesh/node/cli/client"
	"kvmesh/raftstore/kv"
)

const (
	// smallFile is the largest file that is imported together with others.
	smallFile = 64 << 10
	// groupFiles and groupBytes bound what is sent in one call.
	groupFiles = 256
	groupBytes = 1 << 20
)

// small says whether a file may be imported together with others.
func (im *importer) small(it item) bool {
	return it.size <= smallFile && string(it.entry.Metadata) != "null" // which a bulk call takes for none
}

// moveMany writes small files in one call.
func (im *importer) moveMany(ctx context.Context, group []item) []error {
	return im.together(ctx, group, im.read, im.move)
}

// together writes values in one call. A value that the node could not take just then is tried again by itself.
func (s sink) together(
	ctx context.Context, group []item, read func(item) ([]byte, error), move func(context.Context, item) (int64, error),
) []error {
	errs := make([]error, len(group))
	puts := make([]client.BulkPut, 0, len(group))
	at := make([]int, 0, len(group)) // of puts, in group
	for i, it := range group {
		value, err := read(it)
		if err != nil {
			errs[i] = err
			continue
		}
		puts = append(puts, client.BulkPut{
			Key: it.key, Value: value, Metadata: it.entry.Metadata, Expiration: it.entry.Expiration, ExpirationTTL: it.ttl,
		})
		at = append(at, i)
	}
	if len(puts) == 0 {
		return errs
	}
	outcomes, err := s.client.BulkPut(ctx, s.namespace, puts)
	for k, i := range at {
		switch {
		case err != nil && ctx.Err() == nil && notForBulk(client.CodeOf(err)):
			_, errs[i] = move(ctx, group[i])
		case err != nil:
			errs[i] = err
		case s.again(outcomes[k]):
			_, errs[i] = move(ctx, group[i])
		case hasExpired(group[i], outcomes[k]):
			errs[i] = errSkipped
		default:
			errs[i] = outcomes[k]
		}
	}
	return errs
}

// notForBulk says whether a node refused a call as such, and may take its items one by one.
func notForBulk(code kv.Code) bool {
	return code == kv.CodeTooLarge || code == kv.CodeUnsupportedByPeer || code == kv.CodeMethodNotAllowed
}

// again says whether a value is to be tried again by itself, after what became of it in a call of many.
func (s sink) again(err error) bool {
	var e *client.Error
	return errors.As(err, &e) && e.Status >= http.StatusInternalServerError && (e.Code != kv.CodeOutcomeUnknown || s.retryUnknown)
}

// read reads a small file, which must still be as large as it was found.
func (im *importer) read(it item) (value []byte, err error) {
	f, err := im.open(it)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	value, err = io.ReadAll(io.LimitReader(f, it.size+1))
	switch n := int64(len(value)); {
	case err != nil:
		return nil, pathless(err)
	case n > it.size:
		return nil, fmt.Errorf("it grew beyond %d bytes while it was read", it.size)
	case n < it.size:
		return nil, fmt.Errorf("it ended after %d of %d bytes", n, it.size)
	}
	return value, nil
}
