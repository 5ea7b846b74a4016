package subid

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// maxFile bounds what is read of one file: 16 MiB hold some 500,000 users.
const maxFile = 16 << 20

// maxRanges is how many ranges of one user count; the kernel takes no map of more
// (userns.MaxLines, less the line of the user's own id).
const maxRanges = 339

// read takes both files. A file that does not exist has no ranges.
func (s Source) read(username string, uid uint32) (Ranges, error) {
	r := Ranges{Free: firstID}
	for _, f := range []struct {
		path string
		into *[]Range
	}{{s.SubUIDFile, &r.UID}, {s.SubGIDFile, &r.GID}} {
		text, err := readBounded(f.path)
		if err != nil {
			return r, fmt.Errorf("read subordinate ids: %w", err)
		}
		ranges, notes := Parse(text, username, uid)
		*f.into = ranges
		r.Free = max(r.Free, above(text))
		for _, n := range notes {
			r.Notes = append(r.Notes, f.path+" "+n)
		}
	}
	return r, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Parse reads the text form of subuid(5), "owner:start:count" a line, and gives
// the ranges whose owner is username or uid in decimal. Notes name the user's own
// lines that were skipped, by number. Comments and blank lines pass silently.
func Parse(text []byte, username string, uid uint32) (ranges []Range, notes []string) {
	number := strconv.FormatUint(uint64(uid), 10)
	line := 0
	for row := range bytes.Lines(text) {
		line++
		s := strings.TrimSpace(string(row))
		owner, rest, ok := strings.Cut(s, ":")
		if !ok || strings.HasPrefix(s, "#") || (owner != username && owner != number) || owner == "" {
			continue
		}
		r, err := parseRange(rest)
		if err == nil && len(ranges) == maxRanges {
			err = fmt.Errorf("more than %d ranges", maxRanges)
		}
		if err != nil {
			notes = append(notes, fmt.Sprintf("line %d skipped: %v", line, err))
			continue
		}
		ranges = append(ranges, r)
	}
	return ranges, notes
}

// firstID is where subordinate ids begin (login.defs(5), SUB_UID_MIN).
const firstID = 100000

// above returns the lowest id above every range in a file, whoever owns it.
func above(text []byte) uint32 {
	var end uint32
	for row := range bytes.Lines(text) {
		if _, rest, ok := strings.Cut(strings.TrimSpace(string(row)), ":"); ok {
			if r, err := parseRange(rest); err == nil {
				end = max(end, r.Start+r.Count)
			}
		}
	}
	return end
}

// parseRange reads "start:count". Ids are unsigned 32-bit numbers of which the
// last is not usable; a count of none is no range.
func parseRange(s string) (Range, error) {
	first, second, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(second, ":") {
		return Range{}, errors.New("want owner:start:count")
	}
	start, err := strconv.ParseUint(first, 10, 32)
	if err != nil {
		return Range{}, fmt.Errorf("start: %w", err)
	}
	count, err := strconv.ParseUint(second, 10, 32)
	if err != nil {
		return Range{}, fmt.Errorf("count: %w", err)
	}
	if count == 0 {
		return Range{}, errors.New("count is 0")
	}
	if start+count > 1<<32-1 {
		return Range{}, fmt.Errorf("range %d+%d runs past the last id", start, count)
	}
	return Range{Start: uint32(start), Count: uint32(count)}, nil
}
