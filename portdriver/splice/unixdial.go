package splice

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

// maxPath is the longest path of a unix socket, without the end that unix(7) wants.
const maxPath = 107

// lookup connects to a unix socket by its path. A file system may keep the caller
// waiting, so a goroutine does it.
func (c *conn) lookup() {
	if c.over {
		return
	}
	c.d.lookups.Add(1)
	go func() {
		defer c.d.lookups.Done()
		fd, err := c.d.dialPath(c.ln)
		if !c.lane.Do(func() { c.found(fd, err) }) && err == nil {
			_ = unix.Close(fd)
		}
	}()
}

// found goes on after a lookup. A server whose backlog is full is asked again.
func (c *conn) found(fd int, err error) {
	switch {
	case c.over:
		if err == nil {
			_ = unix.Close(fd)
		}
	case err == nil:
		c.server = fd
		c.join(netip.AddrPort{}, netip.AddrPort{}) // it sees none
	case errors.Is(err, unix.EAGAIN) && time.Since(c.started) < portdriver.ConnectTimeout:
		c.pause = min(max(2*c.pause, backlogPause), maxBacklogPause)
		c.after(c.pause, c.lookup)
	default:
		c.refuse(portdriver.RefusedTarget)
	}
}

// UnixDialer connects to unix sockets by path for a process that may not.
type UnixDialer interface {
	// DialUnix is the function DialUnix for a listener's target: with reverse on the
	// host, otherwise in the container. It is called from several goroutines, of
	// which few wait at a time.
	DialUnix(rule int, path string, reverse bool) (fd int, err error)
}

// dialPath returns a non-blocking socket that is connected to a listener's target.
func (d *Driver) dialPath(ln *listener) (fd int, err error) {
	select {
	case ln.lookups <- struct{}{}:
		defer func() { <-ln.lookups }()
	case <-d.gone:
		return -1, os.ErrClosed
	}
	switch l := ln.desc; {
	case d.cfg.UnixDialer != nil:
		return d.cfg.UnixDialer.DialUnix(l.Rule, l.TargetPath, l.Reverse)
	case l.Reverse:
		return DialUnix(nil, l.TargetPath)
	default:
		return DialUnix(d.cfg.Root, l.TargetPath)
	}
}

// DialUnix returns a non-blocking stream socket that is connected to the one at path in
// the tree below root, whose owner is not trusted, or of our own without a root.
// unix.EAGAIN means that its backlog is full. A file system may keep the caller waiting.
func DialUnix(root *os.File, path string) (fd int, err error) {
	at := path
	if root != nil {
		server, err := openSocket(root, path)
		if err != nil {
			return -1, err
		}
		defer unix.Close(server)
		// The one link that is followed is the kernel's own to what was opened.
		at = "/proc/self/fd/" + strconv.Itoa(server)
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: at}); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}

// openSocket opens a socket's path (O_PATH) in the tree below root, as a process
// with that root directory would: links and .. lead nowhere else. The tree's owner is
// not trusted, and may move things meanwhile.
func openSocket(root *os.File, path string) (fd int, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for range 16 {
		// EAGAIN: something was moved while .. was followed (openat2(2)).
		if fd, err = unix.Openat2(int(root.Fd()), path, &how); !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return -1, notBusy(fmt.Errorf("open %s in the container: %w", path, err))
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		err = unix.ENOTSOCK
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("open %s in the container: %w", path, err)
	}
	return fd, nil
}

// notBusy makes an error one that is not taken for a full backlog.
func notBusy(err error) error {
	if errors.Is(err, unix.EAGAIN) {
		return errors.New(err.Error())
	}
	return err
}
