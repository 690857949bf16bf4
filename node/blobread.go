package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"kvmesh/node/wire"
	"kvmesh/raftstore/blob"
	"kvmesh/raftstore/kv"
	"kvmesh/raftstore/seal"
)

// remoteBlob reads the raw bytes that follow a BlobHead. Closing it hangs up.
type remoteBlob struct {
	conn blobConn
	left int64
}

func (r *remoteBlob) Read(p []byte) (int, error) {
	return r.conn.readPart(p, &r.left)
}

// readPart reads some of the left bytes that are to come.
func (c blobConn) readPart(p []byte, left *int64) (int, error) {
	if *left == 0 {
		return 0, io.EOF
	}
	c.moving()
	n, err := c.Read(p[:min(int64(len(p)), *left)])
	*left -= int64(n)
	if errors.Is(err, io.EOF) && *left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (r *remoteBlob) Close() error {
	r.conn.hangUp()
	return nil
}

// ask opens a blob of another voter from an offset on, and tells its whole size. With own that voter gives only what lies
// on its own disk.
func (t *blobTransfer) ask(ctx context.Context, voter string, ref blob.Ref, offset int64, own bool) (*remoteBlob, int64, error) {
	conn, err := t.dial(ctx, voter)
	if err != nil {
		return nil, 0, err
	}
	head, err := conn.get(&wire.BlobRef{Namespace: ref.Namespace, Blob: ref.ID, Offset: offset, Own: own})
	if err != nil {
		conn.hangUp()
		return nil, 0, err
	}
	return &remoteBlob{conn, head.Size - offset}, head.Size, nil
}

// get asks for bytes, which follow when it returns.
func (c blobConn) get(ref *wire.BlobRef) (wire.BlobHeader, error) {
	var head wire.BlobHeader
	if err := c.send(wire.BlobGet, ref); err != nil {
		return head, err
	}
	if err := c.receive(wire.BlobHead, &head); err != nil {
		return head, err
	}
	if head.Size < ref.Offset || head.Size > maxSealedBlob {
		return head, fmt.Errorf("the voter's blob has %d bytes, offset %d was asked for", head.Size, ref.Offset)
	}
	return head, nil
}

// openOwn opens a blob on the own disk.
func (t *blobTransfer) openOwn(ref blob.Ref, offset int64) (io.ReadCloser, int64, error) {
	f, err := t.local.Open(ref.Namespace, ref.ID)
	if err != nil {
		return nil, 0, err
	}
	if offset < 0 || offset > f.Size() {
		return nil, 0, errors.Join(kv.Errorf(kv.CodeInternal, "offset %d of a blob of %d bytes", offset, f.Size()), f.Close())
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, f.Size(), nil
}

// openSealed opens a blob for another node: from the own disk, and with own not set from the other voters what the disk lacks
// or cannot give as it was written. That what is sealed is the same on every voter lets one go on where another one failed.
func (t *blobTransfer) openSealed(ctx context.Context, ref blob.Ref, offset int64, own bool) (io.ReadCloser, int64, error) {
	r, size, err := t.openOwn(ref, offset)
	if err != nil {
		if own {
			return nil, 0, err
		}
		// Nobody is asked for what nobody names: it was replaced, or an edge has made the id up.
		if _, named, nerr := t.state.BlobSize(ref.Namespace, ref.ID); nerr != nil || !named {
			return nil, 0, errors.Join(err, nerr)
		}
		t.noteDamage(ref.Namespace, ref.ID, err)
	}
	if own {
		return r, size, nil
	}
	s := &sealedBlob{t: t, ctx: ctx, ref: ref, cur: r, pos: offset, size: size, local: r != nil}
	if r == nil {
		if err := s.next(err); err != nil {
			return nil, 0, err
		}
	}
	return s, s.size, nil
}

// sealedBlob reads one blob from the own disk and, where that fails, on from the other voters.
type sealedBlob struct {
	t     *blobTransfer
	ctx   context.Context
	ref   blob.Ref
	cur   io.ReadCloser
	pos   int64
	size  int64 // 0 until somebody has said it
	local bool  // cur is the own file
	asked int   // how many of the voters have been asked
}

func (s *sealedBlob) Read(p []byte) (int, error) {
	for {
		n, err := s.cur.Read(p)
		s.pos += int64(n)
		if n > 0 || s.pos >= s.size {
			if s.pos < s.size {
				err = nil // the next call meets it again, or goes on
			}
			return n, err
		}
		if err == nil {
			continue
		}
		if s.local {
			s.t.noteDamage(s.ref.Namespace, s.ref.ID, err)
		}
		if err := s.next(err); err != nil {
			return 0, err
		}
	}
}

// next goes on at another voter.
func (s *sealedBlob) next(why error) error {
	if s.cur != nil {
		_ = s.cur.Close() // it has failed already
		s.cur, s.local = nil, false
	}
	errs := []error{why}
	for voters := s.t.dir.Voters(); s.asked < len(voters) && s.ctx.Err() == nil; {
		voter := voters[s.asked]
		s.asked++
		r, size, err := s.t.ask(s.ctx, voter, s.ref, s.pos, true)
		if err == nil && s.size != 0 && size != s.size {
			err = errors.Join(fmt.Errorf("its blob has %d bytes, not %d", size, s.size), r.Close())
		}
		if err == nil {
			s.cur, s.size = r, size
			return nil
		}
		errs = append(errs, fmt.Errorf("voter %s: %w", voter, err))
	}
	s.cur = failedReader{noVoterGives(errs)}
	return noVoterGives(errs)
}

func (s *sealedBlob) Close() error { return s.cur.Close() }

type failedReader struct{ err error }

func (r failedReader) Read([]byte) (int, error) { return 0, r.err }
func (r failedReader) Close() error             { return nil }

func noVoterGives(errs []error) *kv.Error {
	why := errors.Join(errs...)
	if why == nil {
		why = errors.New("none can be reached")
	}
	return &kv.Error{
		Code: kv.CodeUnavailable, RetryAfter: time.Second,
		Message: "no voter could give the value just now; retry: " + why.Error(),
	}
}

// whole reads a blob that fits the cache into memory.
func (t *blobTransfer) whole(ctx context.Context, ref blob.Ref, want int64) ([]byte, error) {
	r, size, err := t.openSealed(ctx, ref, 0, false)
	if err != nil {
		return nil, err
	}
	return readBlob(r, size, want)
}

// readBlob reads all of r, which has size bytes, if these are as many as wanted.
func readBlob(r io.ReadCloser, size, want int64) ([]byte, error) {
	if size != want {
		return nil, errors.Join(fmt.Errorf("the stored value has %d sealed bytes, %d were expected", size, want), r.Close())
	}
	buf := make([]byte, size)
	_, err := io.ReadFull(r, buf)
	return buf, errors.Join(err, r.Close())
}

// largeValue is a large value that is read piece by piece from whoever has it, for a client. Every segment is verified with the
// value's key before any of it comes out. When a source breaks off, or gives what cannot be opened, the next one goes on at
// the same place.
type largeValue struct {
	t      *blobTransfer
	ctx    context.Context
	ref    blob.Ref
	sealed int64 // size
	open   func(offset int64, sealed func(int64) (io.ReadCloser, error)) (io.ReadCloser, error)

	cur     io.ReadCloser
	pos     int64
	end     int64    // of what is wanted
	until   int64    // the end of the sealed bytes that hold that
	sources []string // that have not failed since the last progress, the present one first; "" = the own disk
	suspect bool     // the own copy was whole, and could not be opened
	pace    pacer
	errs    []error // since the last progress
}

// span is a part of a value.
type span struct{ offset, length int64 }

// openValue opens a part of a value of size bytes. open makes the sealed bytes that it gets from the function it is given
// into the value's, from an offset on. No more is asked for than the segments that hold the part, and the first one.
func (t *blobTransfer) openValue(ctx context.Context, ref blob.Ref, size int64, part span,
	open func(offset int64, sealed func(int64) (io.ReadCloser, error)) (io.ReadCloser, error),
) (*largeValue, error) {
	v := &largeValue{
		t: t, ctx: ctx, ref: ref, sealed: seal.SealedSize(size), open: open,
		pos: part.offset, end: part.offset + part.length, until: seal.SealedEnd(min(size, part.offset+max(part.length, 1)), size),
	}
	v.sources = v.allSources()
	if err := v.connect(); err != nil {
		return nil, err
	}
	return v, nil
}

func (v *largeValue) allSources() (all []string) {
	if v.t.local != nil {
		all = append(all, "")
	}
	return append(all, v.t.dir.Voters()...)
}

// connect opens the value at the first source that lets it.
func (v *largeValue) connect() error {
	for len(v.sources) > 0 && v.ctx.Err() == nil {
		source := &blobSource{
			t: v.t, ctx: v.ctx, ref: v.ref, voter: v.sources[0], want: v.sealed, until: v.until,
			middle: v.pos >= seal.SegmentSize,
		}
		r, err := v.open(v.pos, source.open)
		if err == nil {
			v.cur = &sourced{r, source}
			return nil
		}
		source.close()
		if v.ctx.Err() == nil {
			v.failed(err)
		}
	}
	if err := context.Cause(v.ctx); err != nil {
		return err
	}
	if v.nowhere() {
		return errors.Join(noVoterGives(v.errs), fs.ErrNotExist)
	}
	return noVoterGives(v.errs)
}

// nowhere reports whether every source was asked and lacks the blob.
func (v *largeValue) nowhere() bool {
	for _, err := range v.errs {
		if !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return len(v.errs) > 0
}

// failed passes over the present source.
func (v *largeValue) failed(err error) {
	if v.sources[0] == "" {
		v.t.noteDamage(v.ref.Namespace, v.ref.ID, err)
		v.suspect = errors.Is(err, seal.ErrDamaged) || errors.Is(err, seal.ErrWrongKey) || errors.Is(err, seal.ErrVersion)
		v.errs = append(v.errs, fmt.Errorf("own disk: %w", err))
	} else {
		v.errs = append(v.errs, fmt.Errorf("voter %s: %w", v.sources[0], err))
	}
	v.t.log.Warn("a large value could not be read from one of its copies", "blob", v.ref, "at", v.pos, "error", v.errs[len(v.errs)-1])
	v.sources = v.sources[1:]
}

func (v *largeValue) Read(p []byte) (int, error) {
	if p = p[:min(int64(len(p)), v.end-v.pos)]; len(p) == 0 {
		return 0, io.EOF
	}
	for {
		n, err := v.cur.Read(p)
		if n > 0 {
			v.pos += int64(n)
			v.progress()
			if v.sources[0] == "" { // else it is its voter that gives way
				v.pace.after(v.ctx, n)
			}
			return n, nil
		}
		switch {
		case err == nil:
			continue
		case v.ctx.Err() != nil:
			return 0, context.Cause(v.ctx)
		case errors.Is(err, fs.ErrClosed), len(v.sources) == 0:
			return 0, err
		}
		_ = v.cur.Close() // it has failed already
		v.failed(err)
		if err := v.connect(); err != nil {
			v.cur = failedReader{err}
			return 0, err
		}
	}
}

// progress notes that the present source gives good bytes. What it gives in place of the own copy proves that that one is
// damaged; and once all others have failed they may be asked again, because most of what fails is a connection.
func (v *largeValue) progress() {
	if len(v.errs) == 0 {
		return
	}
	if v.suspect {
		v.suspect = false
		v.t.keeper.Report(v.ref.Namespace, v.ref.ID, true)
	}
	if len(v.sources) == 1 {
		v.sources = append(v.sources, v.t.dir.Voters()...)
	}
	v.errs = nil
}

func (v *largeValue) Close() error { return v.cur.Close() }

// sourced closes the source with what reads from it.
type sourced struct {
	io.ReadCloser
	source *blobSource
}

func (s *sourced) Close() error {
	err := s.ReadCloser.Close()
	s.source.close()
	return err
}

// blobSource gives the sealed bytes of one copy, from several offsets one after the other. A value that is opened in its
// middle needs its header first: both come over one connection.
type blobSource struct {
	t      *blobTransfer
	ctx    context.Context
	ref    blob.Ref
	voter  string // "" = the own disk
	want   int64  // the size that the copy must have
	until  int64  // the end of what is wanted of it
	middle bool   // the first question is for the header only
	conn   blobConn
	last   *sourcePart
}

// open gives the bytes from an offset on. The reader that it gave before must not be used any more.
func (s *blobSource) open(offset int64) (io.ReadCloser, error) {
	if s.voter == "" {
		r, size, err := s.t.openOwn(s.ref, offset)
		if err == nil && size != s.want {
			return nil, errors.Join(fmt.Errorf("%w: the file holds %d bytes, %d were expected", blob.ErrDamaged, size, s.want), r.Close())
		}
		return r, err
	}
	if err := s.reuse(); err != nil {
		return nil, err
	}
	ask := &wire.BlobRef{Namespace: s.ref.Namespace, Blob: s.ref.ID, Offset: offset}
	left := s.until - offset
	if s.middle && offset == 0 {
		left = min(left, seal.SegmentSize)
	}
	ask.Length = left
	head, err := s.conn.get(ask)
	if err != nil {
		return nil, err
	}
	if head.Size != s.want {
		return nil, fmt.Errorf("the stored value has %d sealed bytes, %d were expected", head.Size, s.want)
	}
	s.last = &sourcePart{s, left}
	return s.last, nil
}

// reuse makes the connection ready for the next question, or makes a new one.
func (s *blobSource) reuse() error {
	if s.last != nil && s.last.left <= seal.SegmentSize {
		if _, err := io.CopyN(io.Discard, s.conn, s.last.left); err == nil {
			return nil
		}
	}
	s.close()
	conn, err := s.t.dial(s.ctx, s.voter)
	if err != nil {
		return err
	}
	s.conn = conn
	return nil
}

func (s *blobSource) close() {
	if s.conn.Conn != nil {
		s.conn.hangUp()
		s.conn, s.last = blobConn{}, nil
	}
}

// sourcePart reads the bytes that were asked for last.
type sourcePart struct {
	s    *blobSource
	left int64
}

func (p *sourcePart) Read(b []byte) (int, error) {
	if p.s.last != p {
		return 0, fs.ErrClosed
	}
	return p.s.conn.readPart(b, &p.left)
}

// Close leaves the connection to the source.
func (p *sourcePart) Close() error { return nil }
