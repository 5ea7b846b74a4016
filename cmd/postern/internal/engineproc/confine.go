package engineproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

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

// confined is the argument of an engine that was executed again by confine.
const confined = "confined"

// confine gives up privileges for good, for all threads: no new ones through
// execve, no capability in any set, no core dump and no ptrace by others of the
// same user.
//
// Privileges belong to threads, and Go may already have several. A binary without
// cgo can make a system call on all of them. With cgo it cannot, so this thread
// confines itself and executes the program again: all threads to come inherit.
func confine() error {
	if len(os.Args) > 1 && os.Args[1] == confined {
		return finishConfine()
	}
	err := dropAll(onAllThreads)
	if !errors.Is(err, unix.ENOTSUP) {
		if err != nil {
			return fmt.Errorf("confine engine: %w", err)
		}
		return finishConfine()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := dropAll(onThisThread); err != nil {
		return fmt.Errorf("confine engine: %w", err)
	}
	err = syscall.Exec("/proc/self/exe", []string{Name, confined}, []string{})
	return fmt.Errorf("confine engine: execute it again: %w", err)
}

// finishConfine checks what this thread, and so all, can still do. Root without
// CAP_SETPCAP gets capabilities back when it executes a program.
func finishConfine() error {
	_, data, err := capabilities()
	if err != nil {
		return fmt.Errorf("confine engine: read capabilities: %w", err)
	}
	if data != [2]unix.CapUserData{} {
		return errors.New("confine engine: some capabilities cannot be dropped (build postern with CGO_ENABLED=0)")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("confine engine: clear the dumpable flag: %w", err)
	}
	return nil
}

// caller makes a system call on the threads that it is for.
type caller func(trap, a1, a2, a3 uintptr) error

func onAllThreads(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func onThisThread(trap, a1, a2, a3 uintptr) error {
	if _, _, errno := syscall.RawSyscall6(trap, a1, a2, a3, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// dropAll sets no_new_privs and empties the bounding, ambient, effective,
// permitted and inheritable sets. Without any capability the bounding set cannot
// be lowered, but with no_new_privs it means nothing either.
func dropAll(call caller) error {
	if err := call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	header, data, err := capabilities()
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_SETPCAP) != 0 {
		if err := dropBounding(call); err != nil {
			return fmt.Errorf("empty the bounding set: %w", err)
		}
	}
	err = call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a kernel without ambient capabilities
		return fmt.Errorf("empty the ambient set: %w", err)
	}
	data = [2]unix.CapUserData{}
	err = call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// capabilities returns this thread's sets, and the header that means this thread.
func capabilities() (unix.CapUserHeader, [2]unix.CapUserData, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&header, &data[0])
	return header, data, err
}

// dropBounding removes every capability that the kernel knows from the bounding set.
func dropBounding(call caller) error {
	for c := uintptr(0); c < 64; c++ {
		err := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the last one
		}
		if err != nil {
			return err
		}
	}
	return nil
}
