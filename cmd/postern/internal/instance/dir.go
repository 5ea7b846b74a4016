package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Dir is the directory of an instance that we own. It is not safe for concurrent use.
type Dir struct {
	path string
	made bool // by us, so that Close removes it
	dir  *os.File
	lock *os.File
}

// Create takes the directory at path, makes it if it is missing and removes what
// an earlier instance left. It fails with ErrBusy while that one lives. The
// parent must exist.
func Create(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find the instance's directory: %w", err)
	}
	if socket := filepath.Join(path, socketFile); len(socket) > MaxSocketPath {
		return nil, fmt.Errorf("bind %s: the path has %d bytes, a unix socket's at most %d (use a shorter --state-dir or --name)",
			socket, len(socket), MaxSocketPath)
	}
	for {
		d, err := makeAndOpen(path)
		if errors.Is(err, unix.ENOENT) && exists(filepath.Dir(path)) {
			continue // removed by its last owner between making and opening
		}
		if err != nil {
			return nil, err
		}
		current, err := d.acquire()
		if err == nil && current {
			err = d.clean()
		}
		if err != nil {
			d.drop()
			return nil, err
		}
		if current {
			return d, nil
		}
		// The last owner removed the lock between our opening and locking it.
		d.drop()
	}
}

// makeAndOpen opens the directory, made if it is missing.
func makeAndOpen(path string) (*Dir, error) {
	mkErr := unix.Mkdir(path, 0o700)
	if mkErr != nil && !errors.Is(mkErr, unix.EEXIST) {
		return nil, explain("make directory "+path, mkErr)
	}
	d, err := open(path)
	if err == nil {
		d.made = mkErr == nil
	}
	return d, err
}

// open opens the directory and checks that it is private.
func open(path string) (*Dir, error) {
	d := &Dir{path: path}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain("open directory "+path, err)
	}
	d.dir = os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		d.drop()
		return nil, fmt.Errorf("examine %s: %w", path, err)
	}
	if err := privateStat(path, &st); err != nil {
		d.drop()
		return nil, fmt.Errorf("use state directory: %w", err)
	}
	return d, nil
}

// acquire locks the lock file. It reports false when the file or the directory
// is no longer the one of that name.
func (d *Dir) acquire() (current bool, err error) {
	lock, err := d.openFile(lockFile, unix.O_RDWR|unix.O_CREAT)
	if errors.Is(err, unix.ENOENT) {
		return false, nil // the directory was removed under us
	}
	if err != nil {
		return false, err
	}
	d.lock = lock
	err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("take %s: %w (choose another --name or --state-dir)", d.path, ErrBusy)
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	return d.same(unix.AT_FDCWD, d.path, d.fd()) && d.same(d.fd(), lockFile, int(lock.Fd())), nil
}

// same reports whether name in at leads to the file that fd has open.
func (d *Dir) same(at int, name string, fd int) bool {
	var byName, byFD unix.Stat_t
	return unix.Fstatat(at, name, &byName, unix.AT_SYMLINK_NOFOLLOW) == nil && unix.Fstat(fd, &byFD) == nil &&
		byName.Dev == byFD.Dev && byName.Ino == byFD.Ino
}

// clean removes the files of a dead instance.
func (d *Dir) clean() error {
	for _, name := range known {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// drop gives up without touching the directory's content.
func (d *Dir) drop() {
	if d.lock != nil {
		_ = d.lock.Close()
	}
	_ = d.dir.Close()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (d *Dir) fd() int { return int(d.dir.Fd()) }

// Path returns the path of a name in the directory, "" for the directory itself.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Socket, ResolvConf and Hosts are the paths of the instance's files.
func (d *Dir) Socket() string     { return d.Path(socketFile) }
func (d *Dir) ResolvConf() string { return d.Path(resolvFile) }
func (d *Dir) Hosts() string      { return d.Path(hostsFile) }

// WriteResolvConf and WriteHosts write the files in place: they may be mounted.
func (d *Dir) WriteResolvConf(content []byte) error { return d.overwrite(resolvFile, content) }
func (d *Dir) WriteHosts(content []byte) error      { return d.overwrite(hostsFile, content) }

// MakeNetNS makes the empty file that a detached network namespace is bound to, in
// the command's mount namespace, and returns its path. Docker and nerdctl take its
// mere being there for a sign of that mode, so only that mode has it.
func (d *Dir) MakeNetNS() (string, error) {
	f, err := d.openFile(netnsFile, unix.O_RDWR|unix.O_CREAT)
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// Publish writes instance.json and child_pid.
func (d *Dir) Publish(i Info) error {
	i.Version = infoVersion
	i.trim()
	b, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", d.Path(infoFile), err)
	}
	if err := d.replace(infoFile, append(b, '\n')); err != nil {
		return err
	}
	if i.ChildPID == 0 {
		return nil
	}
	return d.replace(pidFile, []byte(strconv.Itoa(i.ChildPID)))
}

// Close removes the instance's files, the directory if we made it or it is one
// of the default root's, and the lock last.
func (d *Dir) Close() error {
	err := d.clean()
	// What somebody else has removed already is gone, which is all that is wanted.
	unlinkErr := unix.Unlinkat(d.fd(), lockFile, 0)
	if err == nil && unlinkErr != nil && !errors.Is(unlinkErr, unix.ENOENT) {
		err = fmt.Errorf("remove %s: %w", d.Path(lockFile), unlinkErr)
	}
	if d.made {
		rmErr := unix.Rmdir(d.path)
		// A file that is not ours keeps the directory.
		if err == nil && rmErr != nil && !errors.Is(rmErr, unix.ENOTEMPTY) && !errors.Is(rmErr, unix.ENOENT) {
			err = fmt.Errorf("remove directory %s: %w", d.path, rmErr)
		}
	}
	d.drop()
	return err
}

// Adopt makes Close remove the directory although an earlier instance made it.
func (d *Dir) Adopt() { d.made = true }
