package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt believes every byte of its file: a flipped bit in it can give another entry, fewer entries, the file as it was one
// transaction ago, a crash, or an allocation without end. checkBolt reads the file before bbolt does, by its format, and
// believes nothing.
//
// bbolt writes a page in one way only (common.WriteInodeToPage): head, elements, and right behind them the keys and values in
// the order of the elements, without a gap; zeros up to the end of the last page that this takes. A branch names each child
// by the child's first key, on which bbolt itself depends (node.read). Held to that, no byte of a page in use is free to be
// anything else, but for the number of a page: it may lead to another page that is as well made, of another part of the log
// or of an older version of it. That is found by what the entries say of each other (see entryMeta).

// errStructure says that the file of the log is damaged outside the entries, so that nobody knows what it held.
var errStructure = errors.New("the structure of the file is damaged")

// Of bbolt's format, version 2. Numbers are in the machine's byte order.
const (
	boltMagic       = 0xED0CDAED
	boltVersion     = 2
	boltPageHead    = 16 // id u64 | flags u16 | count u16 | overflow u32
	boltElement     = 16 // branch: pos u32 | key bytes u32 | page u64; leaf: flags u32 | pos u32 | key bytes u32 | value bytes u32
	boltMetaBytes   = 64
	boltBucketHead  = 16 // root page u64 | sequence u64
	boltBranchPage  = 0x01
	boltLeafPage    = 0x02
	boltMetaPage    = 0x04
	boltBucketLeaf  = 0x01
	boltNoFreelist  = ^uint64(0)
	boltMaxDepth    = 32
	boltMinPageSize = 1024
	boltMaxPageSize = 1 << 16
	// boltMaxRun bounds what one node of the tree may take. bbolt puts at least two entries into each, and leaves up to four
	// together however large they are; ours have 256 KiB.
	boltMaxRun = 64 << 20
)

// The buckets of raft-boltdb. Into boltConf nothing is ever written.
const (
	boltConf = "conf"
	boltLogs = "logs"
)

var boltOrder = binary.NativeEndian

// boltMeta is one of the two pages that a transaction ends with.
type boltMeta struct {
	pageSize                 uint32
	root, freelist, high, tx uint64 // root page, page of the free list, number of pages, transaction
}

// decodeBoltMeta reads one of the two header pages. Its content has a checksum, its head has not.
func decodeBoltMeta(page []byte, id uint64) (boltMeta, error) {
	b := page[boltPageHead:][:boltMetaBytes]
	sum := fnv.New64a()
	_, _ = sum.Write(b[:56]) // never fails
	if boltOrder.Uint32(b) != boltMagic || boltOrder.Uint32(b[4:]) != boltVersion || boltOrder.Uint64(b[56:]) != sum.Sum64() {
		return boltMeta{}, fmt.Errorf("%w: header page %d", errStructure, id)
	}
	m := boltMeta{
		pageSize: boltOrder.Uint32(b[8:]), root: boltOrder.Uint64(b[16:]), freelist: boltOrder.Uint64(b[32:]),
		high: boltOrder.Uint64(b[40:]), tx: boltOrder.Uint64(b[48:]),
	}
	if boltOrder.Uint64(page) != id || boltOrder.Uint64(page[8:]) != boltMetaPage || m.tx%2 != id {
		return m, fmt.Errorf("%w: the head of header page %d", errStructure, id)
	}
	if m.pageSize < boltMinPageSize || m.pageSize > boltMaxPageSize {
		return m, fmt.Errorf("%w: pages of %d bytes", errStructure, m.pageSize)
	}
	return m, nil
}

// readBoltMetas reads both header pages. bbolt itself takes the other one when one is damaged, and so the file as it was a
// transaction ago.
func readBoltMetas(f io.ReaderAt) (newest boltMeta, err error) {
	size := uint32(os.Getpagesize())
	var metas [2]boltMeta
	for i := range metas {
		var page [boltPageHead + boltMetaBytes]byte
		if _, err := f.ReadAt(page[:], int64(i)*int64(size)); err != nil {
			return newest, fmt.Errorf("%w: header page %d: %w", errStructure, i, err)
		}
		if metas[i], err = decodeBoltMeta(page[:], uint64(i)); err != nil {
			return newest, err
		}
		size = metas[i].pageSize
	}
	newest, older := metas[0], metas[1]
	if older.tx > newest.tx {
		newest, older = older, newest
	}
	if newest.tx != older.tx+1 || newest.pageSize != older.pageSize {
		return newest, fmt.Errorf("%w: the header pages are of transactions %d and %d", errStructure, newest.tx, older.tx)
	}
	return newest, nil
}

// boltReader reads one file.
type boltReader struct {
	f    io.ReaderAt
	meta boltMeta
	used map[uint64]struct{} // pages that somebody refers to
	last []byte              // the newest key
	low  []byte              // what the branches above say that the next key is; nil = there are none
	each func(key, value []byte) error
}

// checkBolt verifies a file of raft-boltdb, gives the keys and values of the log to each in their order, and returns the
// newest transaction. Errors of the file wrap errStructure; an error of each is returned as it is.
func checkBolt(f io.ReaderAt, each func(key, value []byte) error) (tx uint64, err error) {
	r, err := readBolt(f, each)
	if err != nil {
		return 0, err
	}
	return r.meta.tx, nil
}

func readBolt(f io.ReaderAt, each func(key, value []byte) error) (_ *boltReader, err error) {
	r := &boltReader{f: f, used: map[uint64]struct{}{0: {}, 1: {}}}
	if r.meta, err = readBoltMetas(f); err != nil {
		return nil, err
	}
	if r.meta.freelist != boltNoFreelist {
		return nil, fmt.Errorf("%w: it has a free list", errStructure)
	}
	for i := range int64(2) {
		if err := r.zeros(i*int64(r.meta.pageSize)+boltPageHead+boltMetaBytes, int64(r.meta.pageSize)-boltPageHead-boltMetaBytes); err != nil {
			return nil, err
		}
	}
	buckets := make(map[string][]byte, 2)
	r.each = func(key, value []byte) error {
		buckets[string(key)] = append([]byte(nil), value...)
		return nil
	}
	if err := r.tree(r.meta.root, 0, boltBucketLeaf); err != nil {
		return nil, err
	}
	if len(buckets) != 2 || buckets[boltConf] == nil || buckets[boltLogs] == nil {
		return nil, fmt.Errorf("%w: %d buckets", errStructure, len(buckets))
	}
	for _, bucket := range []struct {
		name string
		each func(key, value []byte) error
	}{
		{boltConf, func(_, _ []byte) error {
			return fmt.Errorf("%w: something stands where nothing was written", errStructure)
		}},
		{boltLogs, each},
	} {
		r.each, r.last, r.low = bucket.each, nil, nil
		if err := r.bucket(buckets[bucket.name]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// zeros checks a part of the file that nothing is written to.
func (r *boltReader) zeros(at, n int64) error {
	b := make([]byte, n)
	if _, err := r.f.ReadAt(b, at); err != nil {
		return fmt.Errorf("%w: byte %d: %w", errStructure, at, err)
	}
	return unused(b)
}

func unused(b []byte) error {
	for _, c := range b {
		if c != 0 {
			return fmt.Errorf("%w: something stands behind the end of a page", errStructure)
		}
	}
	return nil
}

// bucket reads what the value of a bucket refers to. A small bucket stands in the page of its parent.
func (r *boltReader) bucket(value []byte) error {
	if len(value) < boltBucketHead || boltOrder.Uint64(value[8:]) != 0 { // raft-boltdb uses no sequences
		return fmt.Errorf("%w: the head of a bucket", errStructure)
	}
	root, inline := boltOrder.Uint64(value), value[boltBucketHead:]
	switch {
	case root != 0 && len(inline) > 0:
		return fmt.Errorf("%w: a bucket in two places", errStructure)
	case root != 0:
		return r.tree(root, 0, 0)
	case len(inline) < boltPageHead || boltOrder.Uint64(inline) != 0 || boltOrder.Uint16(inline[8:]) != boltLeafPage || boltOrder.Uint32(inline[12:]) != 0:
		return fmt.Errorf("%w: the head of a small bucket", errStructure)
	}
	end, err := r.page(inline, 0, 0)
	if err == nil && end != len(inline) {
		err = fmt.Errorf("%w: a small bucket of %d bytes in %d", errStructure, end, len(inline))
	}
	return err
}

// tree reads the page with the given number and what is below it.
func (r *boltReader) tree(id uint64, depth int, leafFlags uint32) error {
	if depth > boltMaxDepth {
		return fmt.Errorf("%w: the tree is deeper than %d pages", errStructure, boltMaxDepth)
	}
	size := uint64(r.meta.pageSize)
	if id < 2 || id >= r.meta.high {
		return fmt.Errorf("%w: a page %d of %d", errStructure, id, r.meta.high)
	}
	page := make([]byte, size)
	if _, err := r.f.ReadAt(page, int64(id*size)); err != nil {
		return fmt.Errorf("%w: page %d: %w", errStructure, id, err)
	}
	overflow := uint64(boltOrder.Uint32(page[12:]))
	if boltOrder.Uint64(page) != id || overflow >= r.meta.high-id || overflow*size > boltMaxRun || boltOrder.Uint16(page[10:]) == 0 {
		return fmt.Errorf("%w: the head of page %d", errStructure, id)
	}
	for i := id; i <= id+overflow; i++ {
		if _, twice := r.used[i]; twice {
			return fmt.Errorf("%w: two ways lead to page %d", errStructure, i)
		}
		r.used[i] = struct{}{}
	}
	if overflow > 0 {
		page = append(page, make([]byte, overflow*size)...)
		if _, err := r.f.ReadAt(page[size:], int64((id+1)*size)); err != nil {
			return fmt.Errorf("%w: page %d: %w", errStructure, id, err)
		}
	}
	end, err := r.page(page, depth, leafFlags)
	if err != nil {
		return err
	}
	if uint64(len(page)-end) >= size {
		return fmt.Errorf("%w: page %d takes more than it needs", errStructure, id)
	}
	return unused(page[end:])
}

// page reads the elements of a page, of which those of a leaf must have the given flags, and returns where their data ends.
func (r *boltReader) page(page []byte, depth int, leafFlags uint32) (end int, err error) {
	flags, count := boltOrder.Uint16(page[8:]), int(boltOrder.Uint16(page[10:]))
	end = boltPageHead + count*boltElement
	if flags != boltBranchPage && flags != boltLeafPage || end > len(page) {
		return 0, fmt.Errorf("%w: a page with flags %#x and %d elements", errStructure, flags, count)
	}
	for i := range count {
		at := boltPageHead + i*boltElement
		e := page[at:][:boltElement]
		pos, keyBytes, valueBytes := boltOrder.Uint32(e[4:]), boltOrder.Uint32(e[8:]), boltOrder.Uint32(e[12:])
		if flags == boltBranchPage {
			pos, keyBytes, valueBytes = boltOrder.Uint32(e), boltOrder.Uint32(e[4:]), 0
		}
		if uint64(at)+uint64(pos) != uint64(end) || uint64(keyBytes)+uint64(valueBytes) > uint64(len(page)-end) || keyBytes == 0 {
			return 0, fmt.Errorf("%w: an element does not stand where it is written", errStructure)
		}
		key := page[end:][:keyBytes]
		value := page[end+int(keyBytes):][:valueBytes]
		end += int(keyBytes) + int(valueBytes)
		if r.low != nil && string(r.low) != string(key) || r.last != nil && string(r.last) >= string(key) {
			return 0, fmt.Errorf("%w: keys out of order", errStructure)
		}
		if flags == boltBranchPage {
			r.low = append([]byte(nil), key...)
			if err := r.tree(boltOrder.Uint64(e[8:]), depth+1, leafFlags); err != nil {
				return 0, err
			}
			continue
		}
		if boltOrder.Uint32(e) != leafFlags {
			return 0, fmt.Errorf("%w: an element of a leaf", errStructure)
		}
		r.last, r.low = append(r.last[:0], key...), nil
		if err := r.each(key, value); err != nil {
			return 0, err
		}
	}
	return end, nil
}
