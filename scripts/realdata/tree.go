package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scan reads every regular file below root. The keys are the relative paths with slashes, sorted by their bytes; refused
// are the paths of links and special files.
func scan(root string) (want []expectation, refused []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		key := filepath.ToSlash(rel)
		if !d.Type().IsRegular() {
			refused = append(refused, key)
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() // read only
		h := sha256.New()
		n, err := io.Copy(h, f)
		want = append(want, expectation{key, [sha256.Size]byte(h.Sum(nil)), n})
		return err
	})
	slices.SortFunc(want, func(a, b expectation) int { return strings.Compare(a.key, b.key) })
	return want, refused, err
}

// copyTree copies the given files from root to a new directory.
func copyTree(root, to string, files []expectation) error {
	for _, f := range files {
		path := filepath.Join(to, filepath.FromSlash(f.key))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(f.key)))
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func totals(want []expectation) (files int, bytes int64) {
	for _, w := range want {
		bytes += w.size
	}
	return len(want), bytes
}

// describe says what a tree holds.
func describe(want []expectation) string {
	files, bytes := totals(want)
	empty, large := 0, 0
	largest, longest := int64(0), 0
	for _, w := range want {
		if w.size == 0 {
			empty++
		}
		if w.size > 64<<10 {
			large++
		}
		largest, longest = max(largest, w.size), max(longest, len(w.key))
	}
	return fmt.Sprintf("%d files, %s; %d empty, %d above 64 KiB, the largest %d bytes, the longest name %d",
		files, mib(bytes), empty, large, largest, longest)
}

func rates(n int, what string, bytes int64, took time.Duration) string {
	s := max(took.Seconds(), 1e-3)
	return fmt.Sprintf("%d %s, %s in %s: %.0f %s/s, %.1f MiB/s",
		n, what, mib(bytes), seconds(took), float64(n)/s, what, float64(bytes)/(1<<20)/s)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }
