package inspect

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// tunGetDevNetNS is TUNGETDEVNETNS, _IO('T', 227) (linux/if_tun.h, Linux 5.2).
const tunGetDevNetNS = 0x54e3

// holder is a process that has a TAP open.
type holder struct {
	pid  int
	name string
	net  uint64 // the TAP's network, 0 if unknown
}

// readDescriptors looks for TAPs and networks among the descriptors of the processes
// that we may look at.
func (c *collector) readDescriptors() {
	left := maxAllFDs
	for _, pid := range sortedKeys(c.procs) {
		if c.procs[pid].ns.User == 0 {
			continue
		}
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		f, err := os.Open(dir)
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(maxFDs)
		f.Close()
		for _, name := range names {
			if left--; left < 0 {
				c.omitted++
				return
			}
			if link, err := os.Readlink(dir + "/" + name); err == nil {
				c.descriptor(pid, name, link)
			}
		}
	}
}

// descriptor looks at one descriptor.
func (c *collector) descriptor(pid int, number, link string) {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return
	}
	if id, ok := nsID("net", link); ok && pid != os.Getpid() {
		s := c.add(c.nets, id, 0, openPlain("/proc/"+strconv.Itoa(pid)+"/fd/"+number))
		s.place(Place{PID: pid, FD: fd})
		return
	}
	if c.packet[pid] && strings.HasPrefix(link, "socket:") {
		if id := c.networkOf(pid, fd, unix.SIOCGSKNS); id != 0 && id != c.self.ns.Net {
			c.nets[id].place(Place{PID: pid, FD: fd})
		}
		return
	}
	if !strings.HasPrefix(link, "/dev/net/tun") {
		return
	}
	info, err := readSmall("/proc/" + strconv.Itoa(pid) + "/fdinfo/" + number)
	if name := tunName(info); err == nil && name != "" && len(c.tuns) < maxNamespaces {
		h := holder{pid: pid, name: name, net: c.networkOf(pid, fd, tunGetDevNetNS)}
		if h.net == 0 {
			h.net = c.said(c.procs[pid], name)
		}
		c.tuns = append(c.tuns, h)
	}
}

// networkOf asks a descriptor of another process for its network, a TAP by
// TUNGETDEVNETNS and a socket by SIOCGSKNS; 0 if we may not.
func (c *collector) networkOf(pid, fd int, request uint) uint64 {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(pidfd)
	theirs, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(theirs)
	ns, err := unix.IoctlRetInt(theirs, request)
	if err != nil {
		return 0
	}
	f := os.NewFile(uintptr(ns), "network of a descriptor")
	id, err := inode(f)
	if err != nil {
		f.Close()
		return 0
	}
	s := c.add(c.nets, id, 0, func() (*os.File, error) { return f, nil })
	if s == nil || s.file != f {
		f.Close()
	}
	if s == nil {
		return 0
	}
	return id
}

// said finds the network that slirp4netns(1) or pasta(1) was told to serve: the last
// words but the interface's name are a PID or a path.
func (c *collector) said(p *raw, ifname string) uint64 {
	list := []string{option(p.words, "--netns")}
	for _, w := range p.words[min(1, len(p.words)):] {
		if w != ifname && !strings.HasPrefix(w, "-") {
			list = append(list, w)
		}
	}
	for _, w := range slices.Backward(list) {
		if n, err := strconv.Atoi(w); err == nil && c.procs[n] != nil && c.procs[n].ns.Net != p.ns.Net {
			return c.procs[n].ns.Net
		}
		if !filepath.IsAbs(w) {
			continue
		}
		if link, err := os.Readlink(w); err == nil {
			if id, ok := nsID("net", link); ok {
				return id
			}
		}
		if id := c.mountedAt(w); id != 0 {
			return id
		}
	}
	return 0
}

// mountedAt finds the network that is mounted at a path, which may begin with
// /proc/PID/root.
func (c *collector) mountedAt(path string) uint64 {
	inside := path
	if rest, ok := strings.CutPrefix(path, "/proc/"); ok {
		if _, rest, ok = strings.Cut(rest, "/root/"); ok {
			inside = "/" + rest
		}
	}
	for _, id := range sortedKeys(c.nets) {
		for _, p := range c.nets[id].places {
			if p.Path == inside {
				return id
			}
		}
	}
	return 0
}
