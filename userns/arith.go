package userns

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrMap is wrapped by every error about a map that the kernel would refuse.
var ErrMap = errors.New("bad id map")

// idSpan is how many ids there are. The last, 2^32-1, means "no change" to the
// kernel's system calls and can never be mapped.
const idSpan = 1<<32 - 1

// ParseMap reads the kernel's text form: one range a line, three decimal numbers
// separated by blanks. Blank lines are allowed. The result is valid; the errors
// wrap ErrMap and name the line.
func ParseMap(text string) (Map, error) {
	var m Map
	line := 0
	for row := range strings.Lines(text) {
		line++
		fields := strings.Fields(row)
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 3 {
			return nil, fmt.Errorf("%w: line %d has %d fields, want 3", ErrMap, line, len(fields))
		}
		var n [3]uint32
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%w: line %d: %w", ErrMap, line, err)
			}
			n[i] = uint32(v)
		}
		if len(m) == MaxLines {
			return nil, fmt.Errorf("%w: more than %d ranges", ErrMap, MaxLines)
		}
		m = append(m, Range{Inside: n[0], Outside: n[1], Count: n[2]})
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// String gives the text that the kernel accepts, one range a line.
func (m Map) String() string {
	var b strings.Builder
	for _, r := range m {
		fmt.Fprintf(&b, "%d %d %d\n", r.Inside, r.Outside, r.Count)
	}
	return b.String()
}

// Validate reports what the kernel would refuse: no range at all, more than
// MaxLines, a range without ids or past the last id, overlap on either side.
func (m Map) Validate() error {
	if len(m) == 0 {
		return fmt.Errorf("%w: no range", ErrMap)
	}
	if len(m) > MaxLines {
		return fmt.Errorf("%w: %d ranges, the kernel takes %d", ErrMap, len(m), MaxLines)
	}
	for _, r := range m {
		if r.Count == 0 {
			return fmt.Errorf("%w: range %s is empty", ErrMap, r)
		}
		if uint64(r.Inside)+uint64(r.Count) > idSpan || uint64(r.Outside)+uint64(r.Count) > idSpan {
			return fmt.Errorf("%w: range %s runs past id %d", ErrMap, r, uint32(idSpan-1))
		}
	}
	if a, b, ok := overlap(m, func(r Range) uint32 { return r.Inside }); ok {
		return fmt.Errorf("%w: ranges %s and %s overlap inside", ErrMap, a, b)
	}
	if a, b, ok := overlap(m, func(r Range) uint32 { return r.Outside }); ok {
		return fmt.Errorf("%w: ranges %s and %s overlap outside", ErrMap, a, b)
	}
	return nil
}

// String gives the range as the kernel's three numbers.
func (r Range) String() string {
	return fmt.Sprintf("%d %d %d", r.Inside, r.Outside, r.Count)
}

// overlap finds two ranges that share an id on the side that start names.
func overlap(m Map, start func(Range) uint32) (a, b Range, found bool) {
	sorted := slices.Clone(m)
	slices.SortFunc(sorted, func(x, y Range) int {
		return int(int64(start(x)) - int64(start(y)))
	})
	for i := 1; i < len(sorted); i++ {
		prev := sorted[i-1]
		if uint64(start(prev))+uint64(prev.Count) > uint64(start(sorted[i])) {
			return prev, sorted[i], true
		}
	}
	return Range{}, Range{}, false
}

// ToOutside translates an id of the namespace into its parent's; false when the
// id is not mapped.
func (m Map) ToOutside(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.Inside && id-r.Inside < r.Count {
			return r.Outside + (id - r.Inside), true
		}
	}
	return 0, false
}

// ToInside translates an id of the parent into the namespace's; false when the
// id is not mapped.
func (m Map) ToInside(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.Outside && id-r.Outside < r.Count {
			return r.Inside + (id - r.Outside), true
		}
	}
	return 0, false
}

// Max is the highest id mapped inside; 0 for an empty map.
func (m Map) Max() uint32 {
	var highest uint32
	for _, r := range m {
		if r.Count > 0 {
			highest = max(highest, r.Inside+r.Count-1)
		}
	}
	return highest
}
