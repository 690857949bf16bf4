package api

import (
	"net/http"
	"strings"

	"kvmesh/raftstore/kv"
)

// span is a part of a value.
type span struct{ start, length int64 }

// rangeApplies reports whether the Range header counts: If-Range names the state that the client has a part of, and a
// date, which this surface never gives out, names none (RFC 9110, 13.1.5).
func rangeApplies(r *http.Request, tag string) bool {
	ifRange := r.Header.Values("If-Range")
	return len(ifRange) == 0 || len(ifRange) == 1 && ifRange[0] == tag
}

// parseRange reads a Range header for a value of size bytes, and returns the part with the status of the answer. One
// range of bytes is honoured; several, other units and what is malformed are passed over, as RFC 9110, 14.2 allows. An
// error means that the part lies beyond the value.
func parseRange(header string, size int64) (span, int, error) {
	whole := span{length: size}
	unit, spec, ok := strings.Cut(header, "=")
	if !ok || !strings.EqualFold(unit, "bytes") {
		return whole, http.StatusOK, nil
	}
	// A list may have empty elements (RFC 9110, 5.6.1).
	first, last, ok := strings.Cut(strings.Trim(spec, " \t,"), "-")
	start, hasStart := natural(first)
	end, hasEnd := natural(last)
	if !ok || (first != "" && !hasStart) || (last != "" && !hasEnd) || (!hasStart && !hasEnd) || (hasStart && hasEnd && end < start) {
		return whole, http.StatusOK, nil
	}
	if !hasStart { // the last `end` bytes
		switch {
		case end == 0:
			return whole, 0, unsatisfiable(size)
		case size == 0:
			return whole, http.StatusOK, nil // everything there is, and Content-Range cannot name nothing
		}
		n := min(end, size)
		return span{size - n, n}, http.StatusPartialContent, nil
	}
	if start >= size {
		return whole, 0, unsatisfiable(size)
	}
	if !hasEnd || end >= size {
		end = size - 1
	}
	return span{start, end - start + 1}, http.StatusPartialContent, nil
}

func unsatisfiable(size int64) error {
	return kv.FieldErrorf(kv.CodeInvalidParameter, "Range", "the range lies beyond the value, which has %d bytes", size)
}
