package ocihook

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrorFile holds the error of the last hook, if the runtime gave it nowhere else
// to go, and is in the bundle's directory for us.
const ErrorFile = "error"

// LeaveError leaves a hook's error where the user finds it when standard error is
// /dev/null, as crun's hooks have it; a hook that succeeds removes it. It is a help,
// and what goes wrong with it is not worth another error.
func LeaveError(files string, stderr *os.File, err error) {
	dir, openErr := openFiles(files)
	if openErr != nil {
		return
	}
	defer dir.Close()
	if err := unix.Unlinkat(int(dir.Fd()), ErrorFile, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return
	}
	if err == nil || !isNull(stderr) {
		return
	}
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, openErr := unix.Openat(int(dir.Fd()), ErrorFile, flags, 0o600)
	if openErr != nil {
		return
	}
	f := os.NewFile(uintptr(fd), ErrorFile)
	defer f.Close()
	fmt.Fprintln(f, "postern:", err)
}

// isNull reports whether a file is /dev/null (major 1, minor 3: null(4)).
func isNull(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
