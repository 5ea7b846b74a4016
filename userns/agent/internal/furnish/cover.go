package furnish

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cover is a file of ours that hides one of the host's.
type cover struct {
	target string   // what programs open
	source *os.File // ours, O_PATH
	ours   fileID
	// copied says that /etc is a copy that was made here, so that it may be changed;
	// all covers share it. One that was made outside, by an instance that this one
	// runs in, is not ours to change.
	copied *bool
}

// fileID tells files apart, whatever path leads to them.
type fileID struct {
	dev, ino uint64
}

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino} }

// openCovers opens our files before anything is mounted over the way to them.
func openCovers(p Plan) ([]*cover, error) {
	var covers []*cover
	copied := p.copies("/etc")
	for _, pair := range [][2]string{{"/etc/resolv.conf", p.ResolvConf}, {"/etc/hosts", p.Hosts}} {
		if pair[1] == "" {
			continue
		}
		c, err := openCover(pair[0], pair[1])
		if err != nil {
			return nil, err
		}
		c.copied = &copied
		covers = append(covers, c)
	}
	return covers, nil
}

func openCover(target, source string) (*cover, error) {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", source, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("examine %s: %w", source, err)
	}
	return &cover{target: target, source: os.NewFile(uintptr(fd), source), ours: idOf(&st)}, nil
}

// inPlace reports whether programs that open the target get our file.
func (c *cover) inPlace() bool {
	var st unix.Stat_t
	return unix.Stat(c.target, &st) == nil && idOf(&st) == c.ours
}

// put binds our file over the target. In a copied-up directory it takes the place
// of the link there, where the host's changes of its own file do not reach it; else
// it is bound through the target's symbolic links. A target that does not exist
// cannot be mounted on, so its directory becomes a writable copy first and gets an
// empty file.
func (c *cover) put() error {
	if !*c.copied {
		if err := c.bind(); !errors.Is(err, unix.ENOENT) {
			return err
		}
	} else if c.isFile() {
		return c.bind()
	}
	if err := c.create(); err != nil {
		return err
	}
	return c.bind()
}

func (c *cover) bind() error {
	// The descriptor leads to the file even where its path is covered by now.
	source := fmt.Sprintf("/proc/self/fd/%d", c.source.Fd())
	if err := unix.Mount(source, c.target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s over %s: %w", c.source.Name(), c.target, err)
	}
	return nil
}

// isFile reports whether the target itself is a regular file, and no link.
func (c *cover) isFile() bool {
	var st unix.Stat_t
	return unix.Lstat(c.target, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// create makes an empty target in a writable copy of its directory.
func (c *cover) create() error {
	dir := filepath.Dir(c.target)
	if !*c.copied {
		if err := copyUp(dir, filepath.Dir(c.source.Name())); err != nil {
			return err
		}
		*c.copied = true
	}
	if err := os.Remove(c.target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the link %s: %w", c.target, err)
	}
	f, err := os.OpenFile(c.target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("create %s: %w", c.target, err)
	}
	return f.Close()
}
