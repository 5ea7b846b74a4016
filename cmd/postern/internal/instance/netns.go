package instance

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// StateVariable is the environment variable in which a command, and the agent that
// runs it, find the instance's directory. It is the first of the environment.
const StateVariable = "POSTERN_STATE_DIR"

// OpenNetNS opens the file that the detached network namespace is bound to, as the
// container's process sees it (O_PATH). Symbolic links on the way mean what they
// mean to that process and never lead out of its tree: one made by --copy-up or by
// the command. What the file is the caller has to look at. Whether the process
// still is the one recorded, too, before and after.
func (i *Info) OpenNetNS() (*os.File, error) {
	root := "/proc/" + strconv.Itoa(i.ChildPID) + "/root"
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	defer unix.Close(at)
	path := filepath.Join(root, i.NetNS)
	fd, err := unix.Openat2(at, i.NetNS, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// maxEnviron is how much of an environment is looked at for its first variable.
const maxEnviron = 4096 + len(StateVariable) // a path's maximum (PATH_MAX)

// OfProcess finds the living instance whose container is the process pid, wherever
// its directory is. The process only says where to look: what counts is a
// directory of ours that names the process.
func OfProcess(pid int) (i Info, found bool) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return Info{}, false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, int64(maxEnviron)))
	if err != nil {
		return Info{}, false
	}
	first, _, _ := bytes.Cut(text, []byte{0})
	dir, found := bytes.CutPrefix(first, []byte(StateVariable+"="))
	if !found {
		return Info{}, false
	}
	i, err = read(string(dir))
	return i, err == nil && i.ChildPID == pid && i.CheckChild() == nil
}
