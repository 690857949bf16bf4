package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/blob"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// asDamage lets errors by which Pebble says that a file does not hold what it wrote wrap ErrDamaged, and leaves all others
// as they are. Every block has a checksum, so nothing that is damaged is ever given out.
func asDamage(err error) error {
	if err == nil || errors.Is(err, ErrDamaged) || !pebble.IsCorruptionError(err) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// asOpenDamage is asDamage for an error of opening, where files that are gone, cannot be read or make no sense are damage
// too. What the system refuses (rights, limits, a full disk) is not, and neither is a database of a newer Pebble.
func asOpenDamage(err error) error {
	var system syscall.Errno
	switch {
	case err == nil, strings.Contains(err.Error(), "format major version"):
		return err
	case errors.As(err, &system) && system != syscall.ENOENT && system != syscall.EIO:
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// recovered turns a panic inside Pebble into an error. Pebble panics where it meets a damaged blob file, instead of saying
// so (fileCacheHandle.findOrCreateBlob).
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: pebble: %v", ErrDamaged, p)
	}
}

// openPebble opens a database. checkBlobs comes first, because Pebble's own goroutines, where nothing recovers, may be the
// first to open a damaged blob file.
func openPebble(dir string, o *pebble.Options) (db *pebble.DB, err error) {
	defer func() { err = asOpenDamage(err) }()
	defer recovered(&err)
	if err := checkBlobs(dir, o); err != nil {
		return nil, err
	}
	return pebble.Open(dir, o)
}

// checkBlobs reads the ends of all blob files that are in use. The rest of them has checksums that Pebble copes with. A
// crash may leave others behind, cut anywhere; which are in use is asked only when there is one whose end is wrong.
func checkBlobs(dir string, o *pebble.Options) error {
	names, err := o.FS.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	bad := make(map[string]error)
	for _, name := range names {
		if strings.HasSuffix(name, blobSuffix) {
			if err := checkBlob(o.FS, o.FS.PathJoin(dir, name)); err != nil {
				bad[name] = err
			}
		}
	}
	if len(bad) == 0 {
		return nil
	}
	inUse, err := blobsInUse(dir, o)
	if err != nil {
		return err
	}
	for _, name := range inUse {
		if err := bad[name]; err != nil {
			return err
		}
	}
	return nil
}

const blobSuffix = ".blob"

// blobsInUse lists the blob files that the database refers to. Nothing runs in a database that is opened for reading.
func blobsInUse(dir string, o *pebble.Options) (names []string, err error) {
	reading := *o
	reading.ReadOnly, reading.ErrorIfNotExists = true, true
	db, err := pebble.Open(dir, &reading)
	if err != nil {
		return nil, err
	}
	for file := range db.DebugCurrentVersion().BlobFiles.All() {
		names = append(names, file.Physical.FileNum.String()+blobSuffix)
	}
	return names, db.Close()
}

func checkBlob(files vfs.FS, path string) error {
	f, err := files.Open(path)
	if err != nil {
		return err
	}
	r, err := sstable.NewSimpleReadable(f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	// Closing the readable closes the file; a reader is nothing beyond it.
	if _, err = blob.NewFileReader(context.Background(), r, blob.FileReaderOptions{}); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return errors.Join(err, r.Close())
}
