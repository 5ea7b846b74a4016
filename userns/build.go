package userns

import "fmt"

// Subrange is a run of ids that a user may map, as /etc/subuid lists them
// (subuid(5)).
type Subrange struct {
	Start uint32
	Count uint32
}

// SingleMap maps id 0 inside to own and nothing else: the one map that the kernel
// lets an ordinary user write without a helper (user_namespaces(7)).
func SingleMap(own uint32) Map {
	return Map{{Inside: 0, Outside: own, Count: 1}}
}

// FullMap maps id 0 inside to own, and from 1 upwards the subordinate ranges one
// after the other, in their order. An own id that lies in a range is cut out of
// it, since an id can be mapped only once. Ranges that overlap each other are
// refused (ErrMap): nothing is merged.
func FullMap(own uint32, sub []Subrange) (Map, error) {
	m := SingleMap(own)
	next := uint64(1)
	for _, s := range sub {
		if s.Count == 0 {
			return nil, fmt.Errorf("%w: subordinate range at %d is empty", ErrMap, s.Start)
		}
		for _, part := range without(s, own) {
			if next+uint64(part.Count) > idSpan || uint64(part.Start)+uint64(part.Count) > idSpan {
				return nil, fmt.Errorf("%w: subordinate range %d+%d runs past the last id", ErrMap, part.Start, part.Count)
			}
			m = append(m, Range{Inside: uint32(next), Outside: part.Start, Count: part.Count})
			next += uint64(part.Count)
		}
	}
	if err := m.Validate(); err != nil {
		return nil, err
	}
	return m, nil
}

// without cuts id out of s, leaving none, one or two ranges.
func without(s Subrange, id uint32) []Subrange {
	if id < s.Start || id-s.Start >= s.Count {
		return []Subrange{s}
	}
	var parts []Subrange
	before := id - s.Start
	if before > 0 {
		parts = append(parts, Subrange{Start: s.Start, Count: before})
	}
	if after := s.Count - before - 1; after > 0 {
		parts = append(parts, Subrange{Start: id + 1, Count: after})
	}
	return parts
}

// IdentityMap maps every id that outer's namespace has to itself: what a process
// with CAP_SETUID in that namespace writes to keep all ids as they are. Outer is
// that namespace's own map.
func IdentityMap(outer Map) Map {
	m := make(Map, 0, len(outer))
	for _, r := range outer {
		m = append(m, Range{Inside: r.Inside, Outside: r.Inside, Count: r.Count})
	}
	return m
}
