package subid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// askTimeout bounds one run of getsubids: a directory service that is down must
// not hold the start up for long.
const askTimeout = 5 * time.Second

// delegated reports whether nsswitch.conf names a source for subid other than
// the files. An unreadable file means files, as it does for the shadow tools.
func (s Source) delegated() bool {
	text, err := readBounded(s.NSSwitch)
	if err != nil {
		return false
	}
	for row := range bytes.Lines(text) {
		line, _, _ := strings.Cut(string(row), "#")
		key, value, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(key) != "subid" {
			continue
		}
		sources := strings.Fields(value)
		return len(sources) > 0 && sources[0] != "files"
	}
	return false
}

// ask runs getsubids twice, for uids and for gids (getsubids(1)).
func (s Source) ask(ctx context.Context, username string) (Ranges, error) {
	var r Ranges
	var err error
	if r.UID, err = s.run(ctx, username); err != nil {
		return Ranges{}, err
	}
	if r.GID, err = s.run(ctx, "-g", username); err != nil {
		return Ranges{}, err
	}
	return r, nil
}

// askTwice asks for the user by name and then, for what he lacks, by number: a
// source may list its owners either way (subuid(5)).
func (s Source) askTwice(ctx context.Context, username string, uid uint32) (Ranges, error) {
	r, err := s.ask(ctx, username)
	if err != nil || len(r.UID) > 0 && len(r.GID) > 0 {
		return r, err
	}
	more, err := s.ask(ctx, strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return Ranges{}, err
	}
	if len(r.UID) == 0 {
		r.UID = more.UID
	}
	if len(r.GID) == 0 {
		r.GID = more.GID
	}
	return r, nil
}

// run gives the ranges that one call of getsubids prints, one a line:
// "0: owner start count". A user without ranges makes it exit 1, which is an
// answer and no failure.
func (s Source) run(ctx context.Context, args ...string) ([]Range, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Getsubids, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 && ctx.Err() == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for subordinate ids of %s: %w", s.Getsubids, args[len(args)-1], err)
	}
	return parseAnswer(out)
}

func parseAnswer(out []byte) ([]Range, error) {
	var ranges []Range
	for row := range bytes.Lines(out) {
		fields := strings.Fields(string(row))
		if len(fields) == 0 {
			continue
		}
		if len(fields) != 4 {
			return nil, fmt.Errorf("read the answer of getsubids: line %q", strings.TrimSpace(string(row)))
		}
		r, err := parseRange(fields[2] + ":" + fields[3])
		if err != nil {
			return nil, fmt.Errorf("read the answer of getsubids: %w", err)
		}
		if len(ranges) < maxRanges {
			ranges = append(ranges, r)
		}
	}
	return ranges, nil
}
