package auto

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Exclusion is a range of ports that is not published automatically.
type Exclusion struct {
	First, Last uint16
	// NoTCP and NoUDP say which transports the exclusion does not concern.
	NoTCP, NoUDP bool
}

// Exclusions is a list of them. The zero value excludes nothing.
type Exclusions []Exclusion

// errExclusion is what an exclusion looks like.
var errExclusion = errors.New("want ~PORT or ~FIRST-LAST, from 1 to 65535, with /tcp or /udp or neither")

// ParseExclusions reads a list such as "~22,~5000-6000,~53/udp". Without a transport
// both are meant. The empty text is the empty list. An error is one line that names
// the exclusion.
func ParseExclusions(text string) (Exclusions, error) {
	if text == "" {
		return nil, nil
	}
	if n := strings.Count(text, ",") + 1; n > MaxExclusions {
		return nil, fmt.Errorf("%d exclusions, want at most %d", n, MaxExclusions)
	}
	var list Exclusions
	for item := range strings.SplitSeq(text, ",") {
		e, ok := parseExclusion(item)
		if !ok {
			return nil, fmt.Errorf("exclusion %q: %w", clip(item), errExclusion)
		}
		list = append(list, e)
	}
	return list, nil
}

func parseExclusion(item string) (e Exclusion, ok bool) {
	ports, ok := strings.CutPrefix(item, "~")
	if !ok {
		return e, false
	}
	ports, proto, named := strings.Cut(ports, "/")
	e.NoTCP, e.NoUDP = proto == "udp", proto == "tcp"
	if named && !e.NoTCP && !e.NoUDP {
		return e, false
	}
	first, last, ranged := strings.Cut(ports, "-")
	if !ranged {
		last = first
	}
	var ok1, ok2 bool
	e.First, ok1 = parsePort(first)
	e.Last, ok2 = parsePort(last)
	return e, ok1 && ok2 && e.First <= e.Last
}

// parsePort reads a decimal number without a sign, 1 to 65535.
func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// clip keeps a wrong word from filling the screen.
func clip(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// String is the exclusion as ParseExclusions reads it.
func (e Exclusion) String() string {
	s := "~" + strconv.Itoa(int(e.First))
	if e.Last != e.First {
		s += "-" + strconv.Itoa(int(e.Last))
	}
	switch {
	case e.NoUDP:
		s += "/tcp"
	case e.NoTCP:
		s += "/udp"
	}
	return s
}

// String is the list as ParseExclusions reads it.
func (l Exclusions) String() string {
	items := make([]string, len(l))
	for i, e := range l {
		items[i] = e.String()
	}
	return strings.Join(items, ",")
}

// Contains reports whether a port is excluded.
func (l Exclusions) Contains(port uint16, udp bool) bool {
	for _, e := range l {
		concerned := !e.NoTCP
		if udp {
			concerned = !e.NoUDP
		}
		if concerned && e.First <= port && port <= e.Last {
			return true
		}
	}
	return false
}
