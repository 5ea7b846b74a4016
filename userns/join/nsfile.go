package join

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kinds are the names of the namespaces by their clone flag (namespaces(7)).
var kinds = map[int]string{
	unix.CLONE_NEWUSER:   "user",
	unix.CLONE_NEWNET:    "network",
	unix.CLONE_NEWNS:     "mount",
	unix.CLONE_NEWPID:    "pid",
	unix.CLONE_NEWIPC:    "ipc",
	unix.CLONE_NEWUTS:    "uts",
	unix.CLONE_NEWCGROUP: "cgroup",
}

// openNSAt opens a namespace's file and makes sure that it is one, of the wanted
// kind. dir nil is the working directory.
func openNSAt(dir *os.File, path, name string, want int) (*os.File, error) {
	at := unix.AT_FDCWD
	if dir != nil {
		at = int(dir.Fd())
	}
	// Nonblocking, so that a fifo by that name does not hold us up.
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	if err := checkNS(fd, want); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// checkNS asks the kernel what fd is (ioctl_nsfs(2)). The filesystem is asked
// first, because the number of the request may mean something else to a device.
func checkNS(fd, want int) error {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(fd, &sfs); err != nil {
		return err
	}
	if sfs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("it is no namespace: %w", unix.EINVAL)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		return err
	}
	if kind != want {
		return fmt.Errorf("it is a %s namespace, want a %s namespace: %w", kinds[kind], kinds[want], unix.EINVAL)
	}
	return nil
}

// ownerOf opens the user namespace that owns a namespace (NS_GET_USERNS).
func ownerOf(ns *os.File) (*os.File, error) {
	fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err == unix.EPERM {
		return nil, fmt.Errorf("open the user namespace of %s: it is not below our own: %w: %w", ns.Name(), ErrNotOwner, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open the user namespace of %s: %w", ns.Name(), err)
	}
	return os.NewFile(uintptr(fd), ns.Name()+" (user namespace)"), nil
}

// ownerUID is the uid of a user namespace's owner as we see it; the kernel's
// overflow uid when he is not mapped here.
func ownerUID(userns *os.File) (uint32, error) {
	return unix.IoctlGetUint32(int(userns.Fd()), unix.NS_GET_OWNER_UID)
}

// sameFile reports whether f and the file at path are one: two namespaces are the
// same if device and inode are (namespaces(7)).
func sameFile(f *os.File, path string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	return os.SameFile(a, b), nil
}
