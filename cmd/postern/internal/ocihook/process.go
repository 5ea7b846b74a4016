package ocihook

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ended reports whether the process of a pidfd has (pidfd_open(2): readable then).
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return err == nil && n > 0
		}
	}
}

// uidOf is a process's real user id (proc_pid_status(5)): the owner of its files
// in /proc is root as long as it is hidden.
func uidOf(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("examine the container's process: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "Uid:" {
			continue
		}
		if uid, err := strconv.Atoi(fields[1]); err == nil {
			return uid, nil
		}
	}
	return 0, fmt.Errorf("examine the container's process: /proc/%d/status has no Uid", pid)
}
