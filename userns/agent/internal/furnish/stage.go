package furnish

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// stages are directories that nearly every system has. One of them serves as a
// mount point for a moment while another directory is being rebuilt, where the
// instance's own directory cannot; that only happens before the command starts.
var stages = []string{"/tmp", "/mnt", "/var", "/home", "/dev/shm"}

// stage binds dir recursively at a directory that has nothing to do with it:
// at home if possible, the instance's directory, where nobody else looks. Paths
// are compared by where they lead now: copies made before turned parts of them
// into links.
func stage(dir, home string) (at string, err error) {
	err = unix.ENOENT
	from := resolved(dir)
	for _, s := range append([]string{home}, stages...) {
		if s == "" {
			continue
		}
		if s = resolved(s); within(from, s) || within(s, from) {
			continue
		}
		if err = unix.Mount(dir, s, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			return s, nil
		}
	}
	return "", fmt.Errorf("keep %s aside: %w", dir, err)
}

// resolved is the path without symbolic links; one that leads nowhere stays as it is.
func resolved(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	return path
}

// unstage moves what stage put aside to its place.
func unstage(at, to string) error {
	if err := unix.Mount(at, to, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %s to %s: %w", at, to, err)
	}
	return nil
}

// within reports whether path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// cgroups is where programs look for control groups.
const cgroups = "/sys/fs/cgroup"

// mountCgroup2 shows the cgroup namespace's own tree, which its root may change
// where it was delegated, at the place where programs look for it.
func mountCgroup2() error {
	err := unix.Mount("cgroup2", cgroups, "cgroup2", cgroupFlags, "")
	if errors.Is(err, unix.EBUSY) {
		// The same tree is there already, and the kernel does not mount a file
		// system over itself.
		if err = unix.Mount("tmpfs", cgroups, "tmpfs", cgroupFlags, "mode=0755"); err == nil {
			err = unix.Mount("cgroup2", cgroups, "cgroup2", cgroupFlags, "")
		}
	}
	if err != nil {
		return fmt.Errorf("mount the cgroup namespace at %s: %w", cgroups, err)
	}
	return nil
}

// cgroupFlags are those that systemd mounts control groups with.
const cgroupFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountSys mounts a /sys of the new network namespace, so that /sys/class/net
// shows its interfaces, and puts the control groups back in their place. An
// error leaves the host's /sys as it was.
func mountSys(home string) error {
	aside := ""
	if _, err := os.Stat(cgroups); err == nil {
		if aside, err = stage(cgroups, home); err != nil {
			return err
		}
	}
	err := mountSysfs()
	if err != nil {
		if aside != "" {
			_ = unix.Unmount(aside, unix.MNT_DETACH)
		}
		return err
	}
	if aside == "" {
		return nil
	}
	if err := unstage(aside, cgroups); err != nil {
		_ = unix.Unmount(aside, unix.MNT_DETACH)
		_ = unix.Unmount("/sys", unix.MNT_DETACH)
		return err
	}
	return nil
}

// mountSysfs mounts sysfs, read-only where the present /sys is: the kernel
// refuses a new one that would allow more (mount_namespaces(7)).
func mountSysfs() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	err := unix.Mount("sysfs", "/sys", "sysfs", flags, "")
	if err != nil {
		err = unix.Mount("sysfs", "/sys", "sysfs", flags|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fmt.Errorf("mount /sys: %w; it shows the host's interfaces", err)
	}
	return nil
}

// copyUp makes dir a writable copy of itself: a tmpfs whose entries are symbolic
// links into the original, which moves to a hidden directory below it. This is
// the scheme of RootlessKit's --copy-up, whose users expect its shape.
func copyUp(dir, home string) error {
	dir = filepath.Clean(dir)
	if !filepath.IsAbs(dir) || dir == "/" {
		return fmt.Errorf("copy up %s: want an absolute directory below /", dir)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("copy up %s: %w", dir, err)
	}
	aside, err := stage(dir, home)
	if err != nil {
		return fmt.Errorf("copy up %s: %w", dir, err)
	}
	original, err := coverWithTmpfs(dir, aside, st.Mode&0o7777)
	if err != nil {
		_ = unix.Unmount(aside, unix.MNT_DETACH)
		return fmt.Errorf("copy up %s: %w", dir, err)
	}
	if err := linkEntries(dir, original); err != nil {
		return fmt.Errorf("copy up %s: %w", dir, err)
	}
	return nil
}

// coverWithTmpfs mounts a tmpfs with dir's mode over dir and moves the staged
// original below it. Set-user-id programs count in it, for container engines keep
// images there; the kernel keeps device files out by itself, as the mount is a user
// namespace's (user_namespaces(7)).
func coverWithTmpfs(dir, aside string, mode uint32) (original string, err error) {
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("mode=%#o", mode)); err != nil {
		return "", fmt.Errorf("mount tmpfs: %w", err)
	}
	original, err = os.MkdirTemp(dir, ".ro")
	if err == nil {
		err = os.Chmod(original, 0o755)
	}
	if err == nil {
		err = unstage(aside, original)
	}
	if err != nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return "", err
	}
	return original, nil
}

// linkEntries makes one link in dir for each entry of original. Links among the
// entries are copied as they are, so that relative ones keep their meaning; one that
// the host removes meanwhile is left out.
func linkEntries(dir, original string) error {
	entries, err := os.ReadDir(original)
	if err != nil {
		return err
	}
	for _, e := range entries {
		target := filepath.Join(filepath.Base(original), e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			target, err = os.Readlink(filepath.Join(original, e.Name()))
			if errors.Is(err, os.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
		}
		if err := os.Symlink(target, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
