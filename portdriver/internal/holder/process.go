package holder

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// patience bounds the look at every descriptor of every process: a message without
// a name is better than one that comes late.
const patience = 2 * time.Second

// process finds who has a socket open; of several, the one with the lowest number,
// which is the parent of the others as a rule.
func process(inode uint64) (pid int, name string) {
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, ""
	}
	defer dir.Close()
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, ""
	}
	want, end := fmt.Sprintf("socket:[%d]", inode), time.Now().Add(patience)
	for _, e := range entries {
		n, err := strconv.Atoi(e)
		if err != nil || pid != 0 && n > pid || time.Now().After(end) {
			continue
		}
		if has(n, want) {
			pid = n
		}
	}
	if pid == 0 {
		return 0, ""
	}
	return pid, command(pid)
}

// has reports whether a process has a descriptor with that target. One whose
// descriptors may not be seen has none.
func has(pid int, target string) bool {
	path := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	dir, err := os.Open(path)
	if err != nil {
		return false
	}
	defer dir.Close()
	fds, _ := dir.Readdirnames(-1) // what could be read of a process that ends
	for _, fd := range fds {
		if link, err := os.Readlink(filepath.Join(path, fd)); err == nil && link == target {
			return true
		}
	}
	return false
}

// command is a process's name, which the process itself chose.
func command(pid int) string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return "a process that has just ended"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.TrimSpace(string(b)))
}
