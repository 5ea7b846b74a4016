package spawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns"
)

// check refuses maps that the kernel would refuse, and maps that leave the
// program without an identity: it becomes id 0.
func (m IDMaps) check() error {
	for _, side := range []struct {
		name string
		m    userns.Map
	}{{"uid", m.UID}, {"gid", m.GID}} {
		if err := side.m.Validate(); err != nil {
			return fmt.Errorf("%s map: %w", side.name, err)
		}
		if _, ok := side.m.ToOutside(0); !ok {
			return fmt.Errorf("%s map: %w: id 0 is not mapped", side.name, userns.ErrMap)
		}
	}
	return nil
}

// degraded is the single-id plan that takes the place of m after err.
func (m IDMaps) degraded(err error) IDMaps {
	return IDMaps{
		UID: userns.SingleMap(uint32(os.Geteuid())), GID: userns.SingleMap(uint32(os.Getegid())),
		Single: true, Notice: notice(errors.Unwrap(err)),
	}
}

// write gives the child its maps. An error wraps ErrMapping if the single-id map
// may still work.
func (m IDMaps) write(ctx context.Context, pid int, pidfd *os.File) error {
	dir, err := openProc(pid)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Alive after the directory was opened: the directory is the child's.
	if err := alive(pid, pidfd); err != nil {
		return err
	}
	switch {
	case m.Single:
		err = m.writeSingle(dir)
	case m.Direct:
		err = m.writeDirect(dir)
	default:
		err = m.writeWithTools(ctx, pid)
	}
	if err != nil {
		return err
	}
	// Alive afterwards: the number meant the child all the time.
	return alive(pid, pidfd)
}

func (m IDMaps) writeSingle(dir *os.File) error {
	// A kernel without the file (before 3.19) has no such rule either.
	if err := writeAt(dir, "setgroups", "deny"); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := writeAt(dir, "uid_map", m.UID.String()); err != nil {
		return err
	}
	return writeAt(dir, "gid_map", m.GID.String())
}

func (m IDMaps) writeDirect(dir *os.File) error {
	err := writeAt(dir, "uid_map", m.UID.String())
	if err == nil {
		err = writeAt(dir, "gid_map", m.GID.String())
	}
	if err != nil {
		return &mappingError{err}
	}
	return nil
}

func (m IDMaps) writeWithTools(ctx context.Context, pid int) error {
	err := runTool(ctx, m.NewUIDMap, "newuidmap", pid, m.UID)
	if err == nil {
		err = runTool(ctx, m.NewGIDMap, "newgidmap", pid, m.GID)
	}
	if err != nil {
		return &mappingError{err}
	}
	return nil
}

// mappingError marks a failure that the single-id map may get round.
type mappingError struct{ cause error }

func (e *mappingError) Error() string        { return ErrMapping.Error() + ": " + e.cause.Error() }
func (e *mappingError) Unwrap() error        { return e.cause }
func (e *mappingError) Is(target error) bool { return target == ErrMapping }

// runTool runs newuidmap or newgidmap: PID, then three numbers a range
// (newuidmap(1)).
func runTool(ctx context.Context, path, name string, pid int, m userns.Map) error {
	if path == "" {
		path = name
	}
	args := append([]string{strconv.Itoa(pid)}, strings.Fields(m.String())...)
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return fmt.Errorf("%s: %w: %s", path, err, said)
	}
	return nil
}

// openProc opens the child's directory of /proc and makes sure that it is one: a
// writable file of that name elsewhere must not pass for a map.
func openProc(pid int) (*os.File, error) {
	path := "/proc/" + strconv.Itoa(pid)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	dir := os.NewFile(uintptr(fd), path)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		dir.Close()
		return nil, fmt.Errorf("look at %s: %w", path, err)
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		dir.Close()
		return nil, fmt.Errorf("open %s: it is not on procfs: mount proc at /proc", path)
	}
	return dir, nil
}

// writeAt writes one of the child's files in one write, as the kernel wants it.
func writeAt(dir *os.File, name, text string) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(text))
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("write %s/%s: %w", dir.Name(), name, err)
	}
	return nil
}

// alive fails when the child has ended.
func alive(pid int, pidfd *os.File) error {
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		return fmt.Errorf("write the id maps of process %d: it ended: %w", pid, err)
	}
	// A zombie still takes signals.
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); err == nil && n == 1 {
		return fmt.Errorf("write the id maps of process %d: it ended: %w", pid, unix.ESRCH)
	}
	return nil
}
