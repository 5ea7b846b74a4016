package inspect

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// readProcesses reads what every process of /proc tells.
func (c *collector) readProcesses() error {
	dir, err := os.Open("/proc")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 0 {
			continue
		}
		if len(c.procs) == maxProcesses {
			c.omitted++
			continue
		}
		if p := readProcess(pid); p != nil {
			c.procs[pid] = p
		}
	}
	return nil
}

// readProcess is nil when the process has ended or is dying.
func readProcess(pid int) *raw {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	text, err := readSmall(dir + "stat")
	if err != nil {
		return nil
	}
	p := &raw{pid: pid}
	if p.stat, err = parseStat(text); err != nil || p.stat.state == 'Z' || p.stat.state == 'X' {
		return nil
	}
	text, _ = readSmall(dir + "status")
	p.uid, p.inner = parseStatus(text)
	text, _ = readSmall(dir + "cmdline")
	p.words = words(text)
	p.cgroup, _ = readSmall(dir + "cgroup")
	for _, ns := range []struct {
		kind string
		into *uint64
	}{{"user", &p.ns.User}, {"net", &p.ns.Net}, {"mnt", &p.ns.Mount}, {"pid", &p.ns.PID}} {
		link, err := os.Readlink(dir + "ns/" + ns.kind)
		if err != nil {
			p.denied = errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
			p.state = pathless(err).Error()
			continue
		}
		*ns.into, _ = nsID(ns.kind, link)
	}
	return p
}

// readSmall reads a file of /proc up to maxCommand bytes.
func readSmall(path string) (string, error) {
	b, err := readUpTo(path, maxCommand)
	return string(b), err
}

// readUpTo reads the beginning of a file.
func readUpTo(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// readInside reads a small regular file below a process's root directory, whatever
// links there are on the way.
func readInside(pid int, path string) ([]byte, error) {
	f, err := openInside(pid, path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, unix.EINVAL
	}
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// openInside opens a path as it is for a process. Links do not lead out of its root.
func openInside(pid int, path string, flags uint64) (*os.File, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// environment returns the value of a variable in the environment that a process was
// started with, empty if it may not be read.
func environment(pid int, name string) string {
	const most = 64 << 10
	b, err := readUpTo("/proc/"+strconv.Itoa(pid)+"/environ", most)
	if err != nil {
		return ""
	}
	for _, w := range words(string(b)) {
		if len(w) > len(name) && w[:len(name)] == name && w[len(name)] == '=' {
			return w[len(name)+1:]
		}
	}
	return ""
}

// pathless strips operation and path from an error of os.
func pathless(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func sortedKeys[K int | uint64, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
