package engineproc

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/seam"
)

// closeStrays closes every descriptor that we were not meant to have. The
// supervisor has marked its own close-on-exec; this is the second line. The Go
// runtime's descriptors stay, told by their names: closing one would make the
// runtime use whatever gets its number next.
func closeStrays() {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return // no /proc to look at
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name.Name())
		if err != nil || fd <= seam.ControlFD {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + name.Name())
		if err != nil || isRuntimes(target) {
			continue
		}
		_ = unix.Close(fd)
	}
}

// isRuntimes reports whether the Go runtime has such files open: its poller with
// what wakes it, and the processor limits of our control group, which it reads
// again now and then (internal/runtime/cgroup).
func isRuntimes(target string) bool {
	if strings.HasPrefix(target, "anon_inode:[event") {
		return true
	}
	switch filepath.Base(target) {
	case "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us":
		return true
	}
	return false
}
