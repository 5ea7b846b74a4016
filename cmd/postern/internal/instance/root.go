package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Places says where instance directories may live. The zero value means the
// system's own places for the current user.
type Places struct {
	// RuntimeDir is XDG_RUNTIME_DIR's value, "" if it is not set.
	RuntimeDir string
	// RunUser is the directory of the users' runtime directories, "" for /run/user.
	RunUser string
	// Temp is the directory of last resort, "" for /tmp.
	Temp string
}

// Root returns the directory that holds the instances' directories, made if
// need be: below XDG_RUNTIME_DIR (XDG Base Directory Specification), else below
// /run/user/UID, else /tmp/postern-UID. A candidate counts only if it is a real
// directory of ours that no one else may enter or, the last, can be made so.
func (p Places) Root() (string, error) {
	uid := os.Getuid()
	runUser, temp := p.RunUser, p.Temp
	if runUser == "" {
		runUser = "/run/user"
	}
	if temp == "" {
		temp = "/tmp"
	}
	for _, dir := range []string{p.RuntimeDir, filepath.Join(runUser, strconv.Itoa(uid))} {
		if !filepath.IsAbs(dir) || checkPrivate(dir) != nil {
			continue
		}
		root := filepath.Join(dir, "postern")
		if err := ensurePrivate(root); err == nil {
			return root, nil
		}
	}
	root := filepath.Join(temp, "postern-"+strconv.Itoa(uid))
	if err := ensurePrivate(root); err != nil {
		return "", fmt.Errorf("find a directory for instances: %w (set XDG_RUNTIME_DIR to a directory of yours with mode 0700, or use --state-dir)", err)
	}
	return root, nil
}

// ensurePrivate makes dir with mode 0700 if it is missing and checks it.
func ensurePrivate(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return checkPrivate(dir)
}

// checkPrivate refuses what is not a directory of ours closed to all others.
func checkPrivate(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("examine %s: %w", dir, err)
	}
	return privateStat(dir, &st)
}

func privateStat(dir string, st *unix.Stat_t) error {
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return fmt.Errorf("%s is a symbolic link, want a directory", dir)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is not a directory", dir)
	case int(st.Uid) != os.Getuid():
		return fmt.Errorf("%s belongs to uid %d, not to us", dir, st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("%s is open to others (mode %04o, want 0700)", dir, st.Mode&0o7777)
	}
	return nil
}
