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
}

// fileID tells files apart, whatever path leads to them.
type fileID struct {
	dev, ino uint64
}

func idOf(st *unix.Stat_t) fileID { return fileID{st.Dev, st.Ino} }

// openCovers opens our files before anything is mounted over the way to them.
func openCovers(p Plan) ([]*cover, error) {
	var covers []*cover
	for _, pair := range [][2]string{{"/etc/resolv.conf", p.ResolvConf}, {"/etc/hosts", p.Hosts}} {
		if pair[1] == "" {
			continue
		}
		c, err := openCover(pair[0], pair[1])
		if err != nil {
			return nil, err
		}
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

// put binds our file over the target, through the target's symbolic links. A
// target that does not exist cannot be mounted on, so its directory becomes a
// writable copy first and gets an empty file.
func (c *cover) put() error {
	err := c.bind()
	if !errors.Is(err, unix.ENOENT) {
		return err
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

// create makes an empty target in a writable copy of its directory.
func (c *cover) create() error {
	dir := filepath.Dir(c.target)
	if !isTmpfsOfOurs(dir) {
		if err := copyUp(dir, filepath.Dir(c.source.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(c.target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the dangling link %s: %w", c.target, err)
	}
	f, err := os.OpenFile(c.target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("create %s: %w", c.target, err)
	}
	return f.Close()
}

// isTmpfsOfOurs reports whether dir has been copied up already.
func isTmpfsOfOurs(dir string) bool {
	hidden, err := filepath.Glob(filepath.Join(dir, ".ro*"))
	if err != nil || len(hidden) == 0 {
		return false
	}
	var top, below unix.Stat_t
	return unix.Stat(dir, &top) == nil && unix.Stat(hidden[0], &below) == nil && top.Dev != below.Dev
}
