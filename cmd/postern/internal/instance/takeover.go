package instance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// leftovers are what RootlessKit may leave in its state directory besides the files
// that we have there too, and their types.
var leftovers = map[string]uint32{
	".s4nn.sock":     unix.S_IFSOCK,
	".bp.sock":       unix.S_IFSOCK,
	".pasta.sock":    unix.S_IFSOCK,
	".bp-ready.pipe": unix.S_IFIFO,
}

// Takeover readies the directory path for Create in place of RootlessKit's, which
// makes missing parents and removes all that is in the directory. What a RootlessKit
// or an instance that has died left there is removed, and with it the directory
// unless it holds something else, so that Create makes it anew, closed to others, and
// removes it in the end. What we do not know stays. It fails with ErrBusy while a
// RootlessKit or an instance lives there, both of which hold the same lock, and
// refuses a directory that others may enter if it holds what is not ours: that was
// not meant to be a state directory.
func Takeover(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("find the state directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return explain("make the state directory's parents", err)
	}
	d, err := openOwn(path)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.drop()
	current, err := d.acquire()
	if err != nil || !current {
		return err // not current: its owner has just removed it
	}
	// RootlessKit leaves it open; only now is it nobody else's.
	if err := unix.Fchmod(d.fd(), 0o700); err != nil {
		return fmt.Errorf("close state directory %s to others: %w", path, err)
	}
	if err := d.clean(); err != nil {
		return err
	}
	for name := range leftovers {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	_ = unix.Unlinkat(d.fd(), lockFile, 0) // Create makes another
	_ = unix.Rmdir(path)                   // the parent may not be ours; then Create uses what is there
	return nil
}

// openOwn opens a directory that is ours to close to others.
func openOwn(path string) (*Dir, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, explain("open state directory "+path, err)
	}
	d := &Dir{path: path, dir: os.NewFile(uintptr(fd), path)}
	if err := d.checkOwn(); err != nil {
		d.drop()
		return nil, err
	}
	return d, nil
}

// checkOwn refuses a directory that is not ours, or not ours alone and not meant to be.
func (d *Dir) checkOwn() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		return fmt.Errorf("examine %s: %w", d.path, err)
	}
	if int(st.Uid) != os.Getuid() {
		return fmt.Errorf("use state directory: %s belongs to uid %d, not to us", d.path, st.Uid)
	}
	if st.Mode&0o077 == 0 {
		return nil
	}
	foreign, err := d.foreign()
	if err != nil {
		return err
	}
	if foreign != "" {
		return fmt.Errorf("use state directory: %s is open to others (mode %04o) and holds %q, which is not ours; name a directory for this alone",
			d.path, st.Mode&0o7777, foreign)
	}
	return nil
}

// foreign returns the name of a file in the directory that neither RootlessKit nor we
// make, "" if there is none.
func (d *Dir) foreign() (string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return "", fmt.Errorf("examine %s: %w", d.path, err)
	}
	for _, e := range entries {
		_, left := leftovers[e.Name()]
		if !left && e.Name() != lockFile && !slices.Contains(known, e.Name()) {
			return e.Name(), nil
		}
	}
	return "", nil
}
