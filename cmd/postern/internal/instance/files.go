package instance

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// kind is the file type that we, or RootlessKit, make a name as.
func kind(name string) uint32 {
	if t, ok := leftovers[name]; ok {
		return t
	}
	if name == socketFile {
		return unix.S_IFSOCK
	}
	return unix.S_IFREG
}

// known lists what an instance leaves in its directory, apart from the lock.
// The .new names are halves of a replacement that was interrupted.
var known = []string{infoFile, infoFile + ".new", pidFile, pidFile + ".new", socketFile, resolvFile, hostsFile, netnsFile}

// openFile opens one of the directory's files, which must be a regular file of
// ours. O_NONBLOCK keeps a planted FIFO from holding us up.
func (d *Dir) openFile(name string, flags int) (*os.File, error) {
	path := d.Path(name)
	fd, err := unix.Openat(d.fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("open %s: it is a symbolic link; remove it", path)
	}
	if err != nil {
		return nil, explain("open "+path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("examine %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Getuid() || st.Nlink > 1 {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open %s: it is not a plain file of ours; remove it", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// replace writes a file whole or not at all: a new file takes the name when its
// bytes are there.
func (d *Dir) replace(name string, content []byte) error {
	half := name + ".new"
	if err := d.remove(half); err != nil {
		return err
	}
	f, err := d.openFile(half, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = unix.Renameat(d.fd(), half, d.fd(), name)
	}
	if err != nil {
		_ = d.remove(half)
		return explain("write "+d.Path(name), err)
	}
	return nil
}

// overwrite writes a file in place, so that mounts of it stay valid. The new
// content goes in with one write, then what is left of the old is cut off.
func (d *Dir) overwrite(name string, content []byte) error {
	f, err := d.openFile(name, unix.O_WRONLY|unix.O_CREAT)
	if err != nil {
		return err
	}
	defer f.Close()
	// The command may run as any mapped user and must be able to read it; the
	// directory above keeps other users of the host out.
	if err := f.Chmod(0o644); err != nil {
		return explain("write "+f.Name(), err)
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return explain("write "+f.Name(), err)
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return explain("write "+f.Name(), err)
	}
	return nil
}

// remove unlinks one of our files if it is there. What we cannot have made stays
// and is an error.
func (d *Dir) remove(name string) error {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("examine %s: %w", d.Path(name), err)
	}
	if st.Mode&unix.S_IFMT != kind(name) || int(st.Uid) != os.Getuid() {
		return fmt.Errorf("remove stale %s: it is not of our making; remove it by hand", d.Path(name))
	}
	if err := unix.Unlinkat(d.fd(), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return explain("remove "+d.Path(name), err)
	}
	return nil
}

// explain adds the fix to the errors that a full or read-only disk gives.
func explain(what string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%s: %w (free some space there, or use --state-dir)", what, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: %w (use --state-dir with a writable directory)", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
