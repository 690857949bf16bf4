package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A checkpoint travels as an archive of its files:
//
//	magic "kvmesh-ckpt" | version 1
//	per file   1 | name length u16 | name | size u64 | content | xxhash64 of all that from the 1 on
//	end        0 | number of files u32 | xxhash64 of that from the 0 on
//
// Numbers are big endian. The checksums find damage; who may send a checkpoint at all is decided by mutual TLS.
const (
	archiveMagic   = "kvmesh-ckpt"
	archiveVersion = 1
	markFile       = 1
	markEnd        = 0
	sumBytes       = 8

	// maxArchiveFiles bounds the map of names on the receiving side: Pebble at 2 MiB a table holds 2 TiB in as many.
	maxArchiveFiles = 1 << 20
	// maxArchiveName is the longest file name that common file systems take.
	maxArchiveName = 255
)

var errArchive = errors.New("damaged checkpoint archive")

// archiveFile is one file of the directory that is being sent.
type archiveFile struct {
	name string
	size int64
}

// archiveReader streams the files of one directory, whose content must not change meanwhile.
type archiveReader struct {
	fs    vfs.FS
	dir   string
	files []archiveFile
	begun int // how many of files

	frame  []byte // bytes to hand out before anything else
	file   vfs.File
	left   int64 // of file
	sum    xxhash.Digest
	ended  bool
	closed func() error
}

// newArchiveReader returns the archive of dir and its exact size. closed is called once, by Close.
func newArchiveReader(fs vfs.FS, dir string, closed func() error) (*archiveReader, int64, error) {
	names, err := fs.List(dir)
	if err != nil {
		return nil, 0, err
	}
	slices.Sort(names)
	r := &archiveReader{fs: fs, dir: dir, closed: closed, frame: append([]byte(archiveMagic), archiveVersion)}
	size := int64(len(r.frame)) + 1 + 4 + sumBytes
	for _, name := range names {
		info, err := fs.Stat(fs.PathJoin(dir, name))
		if err != nil {
			return nil, 0, err
		}
		if info.IsDir() || checkArchiveName(name) != nil {
			return nil, 0, fmt.Errorf("checkpoint: %s is not a plain file", name)
		}
		r.files = append(r.files, archiveFile{name, info.Size()})
		size += 1 + 2 + int64(len(name)) + 8 + info.Size() + sumBytes
	}
	return r, size, nil
}

func checkArchiveName(name string) error {
	if name == "" || len(name) > maxArchiveName || name == "." || name == ".." {
		return fmt.Errorf("%w: file name %q", errArchive, name)
	}
	for _, c := range []byte(name) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("%w: file name %q", errArchive, name)
		}
	}
	return nil
}

func (r *archiveReader) Read(p []byte) (int, error) {
	for {
		switch {
		case len(r.frame) > 0:
			n := copy(p, r.frame)
			r.frame = r.frame[n:]
			return n, nil
		case r.left > 0:
			n, err := r.file.Read(p[:min(int64(len(p)), r.left)])
			_, _ = r.sum.Write(p[:n]) // never fails
			r.left -= int64(n)
			if errors.Is(err, io.EOF) && r.left > 0 {
				return n, fmt.Errorf("checkpoint: %s has shrunk", r.dir)
			}
			if err == nil || errors.Is(err, io.EOF) {
				return n, nil
			}
			return n, err
		case r.ended:
			return 0, io.EOF
		default:
			if err := r.advance(); err != nil {
				return 0, err
			}
		}
	}
}

// advance ends the open file, if any, and begins the next frame.
func (r *archiveReader) advance() error {
	if r.file != nil {
		err := r.file.Close()
		r.file = nil
		r.frame = r.sum.Sum(nil)
		return err
	}
	r.sum.Reset()
	if r.begun == len(r.files) {
		r.ended = true
		r.frame = binary.BigEndian.AppendUint32([]byte{markEnd}, uint32(len(r.files)))
		_, _ = r.sum.Write(r.frame)
		r.frame = r.sum.Sum(r.frame)
		return nil
	}
	next := r.files[r.begun]
	r.begun++
	f, err := r.fs.Open(r.fs.PathJoin(r.dir, next.name))
	if err != nil {
		return err
	}
	r.file, r.left = f, next.size
	r.frame = binary.BigEndian.AppendUint16([]byte{markFile}, uint16(len(next.name)))
	r.frame = append(r.frame, next.name...)
	r.frame = binary.BigEndian.AppendUint64(r.frame, uint64(next.size))
	_, _ = r.sum.Write(r.frame)
	return nil
}

func (r *archiveReader) Close() error {
	var err error
	if r.file != nil {
		err = r.file.Close()
		r.file = nil
	}
	if r.closed != nil {
		err = errors.Join(err, r.closed())
		r.closed = nil
	}
	return err
}

// unpack writes the files of an archive, which takes up all of from, into dir, which exists, and makes them durable.
// Anything wrong with the archive is an error that wraps errArchive.
func unpack(fs vfs.FS, dir string, from io.Reader) error {
	u := &unpacker{fs: fs, dir: dir, r: bufio.NewReaderSize(from, 256<<10), seen: make(map[string]struct{})}
	head := make([]byte, len(archiveMagic)+1)
	if _, err := io.ReadFull(u.r, head); err != nil || !bytes.HasPrefix(head, []byte(archiveMagic)) {
		return fmt.Errorf("%w: no header", errArchive)
	}
	if v := head[len(archiveMagic)]; v != archiveVersion {
		return fmt.Errorf("%w: version %d, this node knows %d", errArchive, v, archiveVersion)
	}
	for {
		u.sum.Reset()
		mark, err := u.take(1)
		if err != nil {
			return err
		}
		switch mark[0] {
		case markFile:
			err = u.unpackFile()
		case markEnd:
			if err = u.end(); err == nil {
				return syncDir(fs, dir)
			}
		default:
			err = fmt.Errorf("%w: mark %d", errArchive, mark[0])
		}
		if err != nil {
			return err
		}
	}
}

type unpacker struct {
	fs   vfs.FS
	dir  string
	r    *bufio.Reader
	sum  xxhash.Digest
	seen map[string]struct{}
	buf  [maxArchiveName]byte
}

// take reads n bytes that the checksum covers. They are valid until the next take.
func (u *unpacker) take(n int) ([]byte, error) {
	b := u.buf[:n]
	if _, err := io.ReadFull(u.r, b); err != nil {
		return nil, fmt.Errorf("%w: cut short: %w", errArchive, err)
	}
	_, _ = u.sum.Write(b)
	return b, nil
}

func (u *unpacker) unpackFile() error {
	b, err := u.take(2)
	if err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(b))
	if n > maxArchiveName {
		return fmt.Errorf("%w: a file name of %d bytes", errArchive, n)
	}
	if b, err = u.take(n); err != nil {
		return err
	}
	name := string(b)
	if err := checkArchiveName(name); err != nil {
		return err
	}
	if _, twice := u.seen[name]; twice || len(u.seen) == maxArchiveFiles {
		return fmt.Errorf("%w: file %q comes twice, or there are too many", errArchive, name)
	}
	u.seen[name] = struct{}{}
	if b, err = u.take(8); err != nil {
		return err
	}
	size := binary.BigEndian.Uint64(b)
	if size > 1<<62 {
		return fmt.Errorf("%w: file %q of %d bytes", errArchive, name, size)
	}
	f, err := u.fs.Create(u.fs.PathJoin(u.dir, name), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	// The size is only a limit here: bytes are written as they come, nothing is allocated ahead. The checksum comes first,
	// because a vfs.File may scribble over what it is given to write.
	copied, err := io.Copy(io.MultiWriter(&u.sum, f), io.LimitReader(u.r, int64(size)))
	if err == nil && copied != int64(size) {
		err = fmt.Errorf("%w: file %q is cut short", errArchive, name)
	}
	if err == nil {
		err = u.checkSum(name)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (u *unpacker) end() error {
	b, err := u.take(4)
	if err != nil {
		return err
	}
	if n := binary.BigEndian.Uint32(b); int(n) != len(u.seen) {
		return fmt.Errorf("%w: %d files, %d announced", errArchive, len(u.seen), n)
	}
	if err := u.checkSum("the end"); err != nil {
		return err
	}
	if _, err := u.r.ReadByte(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: bytes after the end", errArchive)
	}
	return nil
}

// checkSum compares the checksum of what was taken with the one that follows.
func (u *unpacker) checkSum(of string) error {
	want := u.sum.Sum64()
	var b [sumBytes]byte
	if _, err := io.ReadFull(u.r, b[:]); err != nil {
		return fmt.Errorf("%w: cut short: %w", errArchive, err)
	}
	if binary.BigEndian.Uint64(b[:]) != want {
		return fmt.Errorf("%w: checksum of %s", errArchive, of)
	}
	return nil
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
