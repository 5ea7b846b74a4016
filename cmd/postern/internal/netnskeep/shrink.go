package netnskeep

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// shrink gives back what a process does not need that will only wait: the heap, and
// the pages of the program that its start has touched, some megabytes. The kernel
// reads a page again that is needed after all.
func shrink() {
	smaps, err := readAll("/proc/self/smaps")
	debug.FreeOSMemory()
	if err != nil {
		return
	}
	for _, m := range untouched(bytes.NewReader(smaps)) {
		// Refused is fine: the page stays.
		_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED)
	}
}

// readAll reads a file of /proc with one buffer and no runtime poller.
func readAll(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	const most = 1 << 20
	buf := make([]byte, 0, 64<<10)
	for len(buf) < most {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
	return nil, io.ErrShortBuffer
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// untouched finds the mappings of files in a /proc/PID/smaps (proc_pid_smaps(5))
// that cannot be written and of which no page was changed, as relocations do.
func untouched(smaps io.Reader) []mapping {
	var list []mapping
	var m mapping
	file := false
	for sc := bufio.NewScanner(smaps); sc.Scan(); {
		line := sc.Text()
		fields := strings.Fields(line)
		if key, value, _ := strings.Cut(line, ":"); key == "Anonymous" && file && strings.TrimSpace(value) == "0 kB" {
			list = append(list, m)
		}
		if len(fields) < 5 || len(fields[1]) != 4 {
			continue // not the head of a mapping
		}
		var from, to uint64
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil || uint64(uintptr(to)) != to {
			continue
		}
		m = mapping{uintptr(from), uintptr(to)}
		file = fields[1][1] != 'w' && fields[1][3] == 'p' && fields[4] != "0" && to > from
	}
	return list
}
