package inspect

import (
	"errors"
	"strconv"
	"strings"
	"unicode"
)

var errMalformed = errors.New("malformed")

// Clean makes text of others fit for a terminal: control characters, and what
// changes the direction of writing, become question marks; at most limit runes.
func Clean(s string, limit int) string {
	line := make([]rune, 0, min(len(s), limit))
	for _, r := range s {
		if len(line) == limit && limit > 0 {
			line[limit-1] = '…'
			break
		}
		if !unicode.IsPrint(r) { // also U+202E and the like, and U+FFFD is printable
			r = '?'
		}
		line = append(line, r)
	}
	return string(line)
}

// words splits a /proc/PID/cmdline.
func words(cmdline string) []string {
	cmdline = strings.TrimRight(cmdline, "\x00")
	if cmdline == "" {
		return nil
	}
	return strings.Split(cmdline, "\x00")
}

// stat is what is wanted of a /proc/PID/stat (proc_pid_stat(5)).
type stat struct {
	comm   string
	state  byte
	parent int
	start  uint64 // clock ticks since boot
}

// parseStat reads a stat line. The name, in parentheses, may hold anything, so
// fields count from its end.
func parseStat(s string) (stat, error) {
	from, to := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if from < 0 || to < from {
		return stat{}, errMalformed
	}
	fields := strings.Fields(s[to+1:])
	const parent, start = 4 - 3, 22 - 3 // the first field after the name is number 3
	if len(fields) <= start || len(fields[0]) != 1 {
		return stat{}, errMalformed
	}
	st := stat{comm: s[from+1 : to], state: fields[0][0]}
	var perr, serr error
	st.parent, perr = strconv.Atoi(fields[parent])
	st.start, serr = strconv.ParseUint(fields[start], 10, 64)
	return st, errors.Join(perr, serr)
}

// parseStatus reads the effective uid and the number in the process's own PID
// namespace from a /proc/PID/status (proc_pid_status(5)).
func parseStatus(s string) (uid uint32, inner int) {
	for line := range strings.Lines(s) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case key == "Uid" && len(fields) >= 2:
			n, _ := strconv.ParseUint(fields[1], 10, 32)
			uid = uint32(n)
		case key == "NSpid" && len(fields) > 0:
			inner, _ = strconv.Atoi(fields[len(fields)-1])
		}
	}
	return uid, inner
}

// nsID reads "net:[4026531840]".
func nsID(kind, link string) (uint64, bool) {
	number, ok := strings.CutPrefix(link, kind+":[")
	if !ok {
		return 0, false
	}
	number, ok = strings.CutSuffix(number, "]")
	if !ok {
		return 0, false
	}
	id, err := strconv.ParseUint(number, 10, 64)
	return id, err == nil && id != 0
}

// nsMount is a mount of a network namespace.
type nsMount struct {
	id   uint64
	path string
}

// parseMounts finds the mounts of network namespaces in a /proc/PID/mountinfo
// (proc_pid_mountinfo(5)).
func parseMounts(s string) []nsMount {
	var list []nsMount
	n := 0
	for line := range strings.Lines(s) {
		if n++; n > maxMounts {
			break
		}
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if id, ok := nsID("net", fields[3]); ok {
			list = append(list, nsMount{id, unescape(fields[4])})
		}
	}
	return list
}

// unescape undoes mountinfo's octal escapes of blanks and backslashes.
func unescape(s string) string {
	if !strings.ContainsRune(s, '\\') {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// tunName reads the interface's name from the fdinfo of a /dev/net/tun, empty when
// the descriptor has none.
func tunName(fdinfo string) string {
	for line := range strings.Lines(fdinfo) {
		if name, ok := strings.CutPrefix(line, "iff:"); ok {
			return strings.TrimSpace(name)
		}
	}
	return ""
}

// mapLines puts the lines of a uid_map in single blanks.
func mapLines(s string) []string {
	var list []string
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) == 3 && len(list) < maxMapLines {
			list = append(list, strings.Join(f, " "))
		}
	}
	return list
}
