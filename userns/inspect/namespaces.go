package inspect

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// space is a namespace that was found.
type space struct {
	file   *os.File // nil when it may not be opened
	user   uint64   // a network's owner, a user namespace's parent
	owner  *uint32  // a user namespace's
	uidMap []string // a user namespace's, as gidMap
	gidMap []string
	member int     // a process in it, 0: none
	places []Place // a network's
	err    error   // why it may not be opened
}

// add notes a namespace. open is tried if nobody has opened it before.
func (c *collector) add(list map[uint64]*space, id uint64, member int, open func() (*os.File, error)) *space {
	s := list[id]
	if s == nil {
		if len(list) == maxNamespaces {
			c.omitted++
			return nil
		}
		s = &space{}
		list[id] = s
	}
	if s.member == 0 {
		s.member = member
	}
	if s.file == nil {
		f, err := open()
		if err != nil {
			s.err = pathless(err)
			return s
		}
		if got, err := inode(f); err != nil || got != id { // it became another's meanwhile
			f.Close()
			return s
		}
		s.file, s.err = f, nil
	}
	return s
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// openPlain opens a path that a process's magic link is.
func openPlain(path string) func() (*os.File, error) {
	return func() (*os.File, error) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// findSpaces finds the namespaces that processes are in.
func (c *collector) findSpaces() {
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		dir := "/proc/" + strconv.Itoa(pid) + "/ns/"
		if p.ns.User != 0 {
			c.add(c.users, p.ns.User, pid, openPlain(dir+"user"))
		}
		if p.ns.Net != 0 {
			c.add(c.nets, p.ns.Net, pid, openPlain(dir+"net"))
		}
	}
}

// findMounts finds networks that are mounted somewhere: once in each mount namespace.
func (c *collector) findMounts() {
	seen := make(map[uint64]bool)
	for _, pid := range sortedKeys(c.procs) {
		p := c.procs[pid]
		if p.ns.Mount == 0 || seen[p.ns.Mount] {
			continue
		}
		text, err := readUpTo("/proc/"+strconv.Itoa(pid)+"/mountinfo", 4*maxFile)
		if err != nil {
			continue
		}
		seen[p.ns.Mount] = true
		for _, m := range parseMounts(string(text)) {
			s := c.add(c.nets, m.id, 0, func() (*os.File, error) { return openInside(pid, m.path, unix.O_RDONLY|unix.O_NONBLOCK) })
			s.place(Place{PID: pid, Path: Clean(m.path, 4096)})
		}
	}
}

// maxPlaces bounds the places that are kept of one network.
const maxPlaces = 16

// place notes where a network is held. A path is noted once: every mount namespace
// that was copied from another has the same.
func (s *space) place(p Place) {
	if s == nil || len(s.places) == maxPlaces {
		return
	}
	for _, q := range s.places {
		if p.Path != "" && p.Path == q.Path {
			return
		}
	}
	s.places = append(s.places, p)
}

// findOwners asks every network for the user namespace that owns it, and every user
// namespace for its parent and owner.
func (c *collector) findOwners() {
	for _, id := range sortedKeys(c.nets) {
		if s := c.nets[id]; s.file != nil {
			s.user, s.err = c.related(s.file, unix.NS_GET_USERNS)
		}
	}
	for asked := make(map[uint64]bool); ; {
		before := len(asked)
		for _, id := range sortedKeys(c.users) {
			s := c.users[id]
			if asked[id] || s.file == nil {
				continue
			}
			asked[id] = true
			s.readMaps()
			s.user, _ = c.related(s.file, unix.NS_GET_PARENT) // ours has one that is not for us
			if uid, err := unix.IoctlGetUint32(int(s.file.Fd()), unix.NS_GET_OWNER_UID); err == nil {
				s.owner = &uid
			}
		}
		if len(asked) == before {
			return
		}
	}
}

// readMaps reads a user namespace's id maps, as a process in it has them.
func (s *space) readMaps() {
	if s.member == 0 {
		return
	}
	dir := "/proc/" + strconv.Itoa(s.member)
	if text, err := readUpTo(dir+"/uid_map", maxFile); err == nil {
		s.uidMap = mapLines(string(text))
	}
	if text, err := readUpTo(dir+"/gid_map", maxFile); err == nil {
		s.gidMap = mapLines(string(text))
	}
}

// related notes the user namespace that a namespace belongs to.
func (c *collector) related(f *os.File, request uint) (uint64, error) {
	fd, err := unix.IoctlRetInt(int(f.Fd()), request)
	if errors.Is(err, unix.EPERM) {
		return 0, errAbove
	}
	if err != nil {
		return 0, err
	}
	up := os.NewFile(uintptr(fd), "user namespace")
	id, err := inode(up)
	if err != nil {
		up.Close()
		return 0, err
	}
	s := c.add(c.users, id, 0, func() (*os.File, error) { return up, nil })
	if s == nil || s.file != up {
		up.Close()
	}
	return id, nil
}

// errAbove is about a user namespace that is not ours or below ours.
var errAbove = errors.New("it belongs to a user namespace outside ours")

// enterable is the path that our own descriptor has.
func enterable(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
