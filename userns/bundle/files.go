package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// decode reads a value, of which null and a missing one leave v as it is.
func decode(raw json.RawMessage, v any) error {
	if raw == nil {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("parse JSON: %w", err)
	}
	return nil
}

// readFile reads a plain file of at most limit bytes. Links are not followed: an
// edit would replace the link and leave the file as it is.
func readFile(path string, limit int64) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("open %s: it is a symbolic link; put the file itself there", path)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("read %s: it is not a plain file", path)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("read %s: longer than %d bytes", path, limit)
	}
	return text, err
}

// replace gives a path to a new file when all its bytes are on the disk. Owner and
// mode are those of like, or ours and 0600.
func replace(path string, content []byte, like *unix.Stat_t) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".postern-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the renaming
	_, err = f.Write(content)
	if err == nil && like != nil {
		err = assume(f, like)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(dir)
}

// assume takes owner and mode of another file over. Mode comes last, since a change
// of owner clears some of its bits.
func assume(f *os.File, like *unix.Stat_t) error {
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return err
	}
	if now.Uid != like.Uid || now.Gid != like.Gid {
		if err := f.Chown(int(like.Uid), int(like.Gid)); err != nil {
			return fmt.Errorf("keep the owner: %w", err)
		}
	}
	return unix.Fchmod(int(f.Fd()), like.Mode&0o7777)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // not all file systems can
		return fmt.Errorf("write directory %s: %w", dir, err)
	}
	return nil
}

// makeSide makes SideDir. Containers' users need not enter it: the files are bound
// by the runtime.
func (b *Bundle) makeSide() error {
	err := os.Mkdir(b.Side(), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(b.Side())
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory; remove it", b.Side())
	}
	return err
}

// removeSide removes what we keep. A file that is not ours keeps the directory.
func (b *Bundle) removeSide() error {
	for _, name := range []string{sumFile, resolvFile, hostsFile, errorFile, configFile} {
		if err := os.Remove(b.path(SideDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	err := os.Remove(b.Side())
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// fill writes a file in place, so that mounts of it stay valid. Every user of a
// container must be able to read it.
func fill(path string, content []byte) error {
	return write(path, content, unix.O_CREAT)
}

// Refresh writes the containers' resolv.conf and hosts anew; nil leaves one as it
// is. Side is the path of the bundle's SideDir. A file that is missing, because the
// bundle is no longer prepared, stays so.
func Refresh(side string, resolvConf, hosts []byte) error {
	var all error
	for name, content := range map[string][]byte{resolvFile: resolvConf, hostsFile: hosts} {
		if content == nil {
			continue
		}
		if err := write(filepath.Join(side, name), content, 0); !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// write writes a file of ours in place: with one write, then what is left of the
// old content is cut off.
func write(path string, content []byte, flags int) error {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, filepath.Base(path), flags|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("examine %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Nlink != 1 {
		return fmt.Errorf("write %s: it is not a plain file of ours; remove it", path)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if _, err := f.WriteAt(content, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(content)))
}
