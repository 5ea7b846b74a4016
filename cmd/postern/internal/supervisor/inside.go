package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/auto"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/sockdiag"
)

// containerListener makes a listening socket inside the container, for rules that
// take its processes to the host. An address that was not given is the container's
// 127.0.0.1.
func (s *session) containerListener(side portdriver.Side) (*os.File, error) {
	if s.net.make == nil {
		return nil, errors.New("listen in the container: it is not there yet")
	}
	if s.net.target == nil {
		return nil, fmt.Errorf("listen in the container: %w", errNoNetNS)
	}
	if side.Path != "" {
		return s.listenAtPath(side.Path)
	}
	addr, kind := side.Addr, handoff.SocketTCP4
	if !addr.IsValid() {
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if addr.Is6() {
		kind = handoff.SocketTCP6
	}
	return s.net.target.Listen(kind, netip.AddrPortFrom(addr, side.Port))
}

// maxContainerBacklog is how many connections may wait for the engine; the kernel
// lowers it to net.core.somaxconn.
const maxContainerBacklog = 4096

// listenAtPath binds a unix socket at a path of the container. The container decides
// what its path leads to, so the directory is opened without leaving its root, and
// what stands in the way is removed only if it is a socket.
func (s *session) listenAtPath(name string) (*os.File, error) {
	fail := func(err error) (*os.File, error) {
		return nil, fmt.Errorf("listen at %s in the container: %w", name, err)
	}
	root, err := s.containerRoot()
	if err != nil {
		return fail(err)
	}
	defer root.Close()
	dir, err := unix.Openat2(int(root.Fd()), strings.TrimLeft(path.Dir(name), "/")+"/.", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fail(err)
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	base := path.Base(name)
	if err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
		_ = unix.Unlinkat(dir, base, 0) // bind reports what is still there
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, base)})
	if err == nil {
		err = unix.Listen(fd, maxContainerBacklog)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// listenerWatch is what --publish-auto runs.
type listenerWatch struct {
	watcher  *sockdiag.Watcher
	follower *auto.Follower
}

func (w *listenerWatch) close() {
	if w == nil {
		return
	}
	w.watcher.Close() // the one that calls before the one that is called
	w.follower.Close()
}

// check is to be called when rules were added or removed by others. It is safe for
// concurrent use.
func (w *listenerWatch) check() {
	if w != nil {
		w.follower.Check()
	}
}

// followListeners starts to publish what the container listens on.
func (s *session) followListeners() error {
	dump, err := diagSocket(s.net.target)
	if err != nil {
		return err
	}
	events, err := diagSocket(s.net.target)
	if err != nil {
		closeFiles(dump)
		return err
	}
	f := auto.New(auto.Config{
		Policy: auto.Policy{
			Addresses: addressesOf(s.cfg), Interface: uint32(s.net.endpoint.index), Exclude: s.cfg.AutoExcept,
		},
		Registry: s.autoRegistry(), Logger: s.log,
	})
	w, err := sockdiag.Watch(sockdiag.Config{Dump: dump, Events: events, Changed: f.Update, Logger: s.log})
	if err != nil {
		f.Close()
		return fmt.Errorf("follow the container's listeners: %w", err)
	}
	s.listeners.Store(&listenerWatch{w, f})
	return nil
}

// diagSocket makes a sock_diag socket in the container's network namespace.
func diagSocket(t *join.Target) (*os.File, error) {
	if t == nil {
		return nil, fmt.Errorf("follow the container's listeners: %w", errNoNetNS)
	}
	sockets, err := t.Open(join.Request{})
	if err != nil {
		return nil, fmt.Errorf("follow the container's listeners: %w", err)
	}
	closeFiles(sockets.Route)
	return sockets.Diag, nil
}

// addressesOf are the container's network's, for the port drivers.
func addressesOf(cfg *Config) portdriver.Addresses {
	return portdriver.Addresses{
		Container4: cfg.Plan.V4.Container, Gateway4: cfg.Plan.V4.Gateway,
		Container6: cfg.Plan.V6.Container, Gateway6: cfg.Plan.V6.Gateway,
	}
}
