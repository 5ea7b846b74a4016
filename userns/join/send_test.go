package join

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// Every kind has what the engine relies on, however many are asked for.
func TestSendSockets(t *testing.T) {
	usertest.AsUser(t)
	p := &published{target: mustOpen(t, inhabited(t, spawn.Single, nil).PID)}
	p.pair(t)
	before := openDescriptors(t)
	for kind := range handoff.SocketKind(handoff.NumSocketKinds) {
		for _, n := range []int{1, SocketsPerMessage + 1, socketsPerVisit + 3} {
			fds := p.sockets(t, kind, n)
			for _, fd := range fds {
				checkSocket(t, fd, kind)
				unix.Close(fd)
			}
		}
	}
	if after := openDescriptors(t); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
	if err := p.target.SendSockets(p.to, handoff.SocketKind(handoff.NumSocketKinds), 1); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a kind that there is not: %v", err)
	}
}

func checkSocket(t *testing.T, fd int, kind handoff.SocketKind) {
	t.Helper()
	want := map[string]int{"domain": unix.AF_INET, "type": unix.SOCK_STREAM, "mark": rtnl.PublishedMark, "reuse": 1, "transparent": 1, "only": 1}
	if kind != handoff.SocketTCP4 && kind != handoff.SocketTCP6 {
		want["type"] = unix.SOCK_DGRAM
	}
	if kind == handoff.SocketExpressUDP4 || kind == handoff.SocketExpressUDP6 {
		want["mark"] = rtnl.ExpressMark
	}
	level, transparent := unix.SOL_IP, unix.IP_TRANSPARENT
	if kind == handoff.SocketTCP6 || kind == handoff.SocketUDP6 || kind == handoff.SocketExpressUDP6 {
		want["domain"] = unix.AF_INET6
		level, transparent = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	for name, o := range map[string][2]int{
		"domain": {unix.SOL_SOCKET, unix.SO_DOMAIN}, "type": {unix.SOL_SOCKET, unix.SO_TYPE}, "mark": {unix.SOL_SOCKET, unix.SO_MARK},
		"reuse": {unix.SOL_SOCKET, unix.SO_REUSEADDR}, "transparent": {level, transparent}, "only": {unix.SOL_IPV6, unix.IPV6_V6ONLY},
	} {
		if name == "only" && want["domain"] == unix.AF_INET {
			continue
		}
		if got, err := unix.GetsockoptInt(fd, o[0], o[1]); err != nil || got != want[name] {
			t.Errorf("%s: %s is %d, %v; want %d", kind, name, got, err, want[name])
		}
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("%s: blocking (%#x, %v)", kind, flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("%s: kept on exec (%#x, %v)", kind, flags, err)
	}
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// A receiver that does not read, or is gone, is an error after a while and holds
// nobody up for ever.
func TestSendSocketsToNobody(t *testing.T) {
	usertest.AsUser(t)
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	to, from, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	// A small buffer, so that it is full before all of the user's descriptors are on
	// their way.
	if err := unix.SetsockoptInt(int(to.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for err == nil && time.Now().Before(deadline) {
		err = target.SendSockets(to, handoff.SocketTCP4, 1)
	}
	if !errors.Is(err, unix.EAGAIN) || !strings.HasPrefix(err.Error(), "send sockets in process ") {
		t.Errorf("nobody reads: %v, want EAGAIN", err)
	}
	from.Close()
	// The first error tells that messages were not read, the next that nobody is there.
	for _, want := range []error{unix.ECONNRESET, unix.EPIPE} {
		if err := target.SendSockets(to, handoff.SocketTCP4, 1); !errors.Is(err, want) {
			t.Errorf("nobody there: %v, want %v", err, want)
		}
	}
	to.Close()
	if err := target.SendSockets(to, handoff.SocketTCP4, 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("our end closed: %v, want os.ErrClosed", err)
	}
}

// The kernel's limit on descriptors that are on their way is one on all of a user's
// processes, and not for root.
func TestTooManySocketsOnTheirWay(t *testing.T) {
	if !usertest.AsUser(t) {
		return
	}
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	to, from, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	defer from.Close()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 2 * socketsPerVisit, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if err := target.SendSockets(to, handoff.SocketTCP4, handoff.MaxOrder); !errors.Is(err, unix.ETOOMANYREFS) {
		t.Errorf("%v, want ETOOMANYREFS", err)
	}
	conn, err := fdpass.NewConn(from)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, fds, err := conn.RecvRaw(make([]byte, 1), nil)
	if err != nil || len(fds) != SocketsPerMessage {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	if err := target.SendSockets(to, handoff.SocketTCP4, 1); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

func TestPublishingInOwnNetworkIsRefused(t *testing.T) {
	target := mustOpen(t, os.Getpid())
	if err := target.PreparePublishing(); !errors.Is(err, ErrOwnNetwork) || errors.Is(err, ErrNoPublishing) {
		t.Errorf("prepare: %v", err)
	}
	if _, err := target.Listen(handoff.SocketTCP4, netip.MustParseAddrPort("127.0.0.1:0")); !errors.Is(err, ErrOwnNetwork) {
		t.Errorf("listen: %v", err)
	}
	if err := target.SendSockets(os.Stderr, handoff.SocketTCP4, 1); !errors.Is(err, ErrOwnNetwork) {
		t.Errorf("send: %v", err)
	}
}

// Where a setting is refused, the error says which, and that there is another way.
func TestNoPublishing(t *testing.T) {
	usertest.AsUser(t)
	target := mustOpen(t, inhabited(t, spawn.Single, nil).PID)
	old := publishing
	defer func() { publishing = old }()
	publishing = []sysctl{{"ipv4/nonexistent", "1", true}, {"ipv6/nonexistent", "1", false}}
	err := target.PreparePublishing()
	if !errors.Is(err, ErrNoPublishing) || !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "set /proc/sys/net/ipv6/nonexistent to 1 in process ") {
		t.Errorf("a missing setting: %v", err)
	}
	publishing = []sysctl{{"ipv4/tcp_fwmark_accept", "no number", false}}
	if err := target.PreparePublishing(); !errors.Is(err, ErrNoPublishing) || !errors.Is(err, unix.EINVAL) {
		t.Errorf("a refused value: %v", err)
	}
}

func TestListen(t *testing.T) {
	usertest.AsUser(t)
	p := &published{target: mustOpen(t, inhabited(t, spawn.Single, nil).PID)}
	s := mustVisit(t, p.target, Request{})
	if err := rtnl.Up(s.Route, "lo"); err != nil {
		t.Fatal(err)
	}
	p.listen(t, "127.0.0.1:80") // a port below 1024
	p.listen(t, "10.0.2.100:80")
	p.listen(t, "[fd00::100]:80")
	l := p.listen(t, "[::1]:0")
	if l.Addr().(*net.TCPAddr).Port == 0 {
		t.Error("no port was chosen")
	}
	for _, tc := range []struct {
		kind handoff.SocketKind
		addr string
		want error
	}{
		{handoff.SocketTCP4, "127.0.0.1:80", unix.EADDRINUSE},
		{handoff.SocketTCP4, "[::1]:81", unix.EINVAL},
		{handoff.SocketTCP6, "127.0.0.1:81", unix.EINVAL},
		{handoff.SocketTCP6, "[::ffff:127.0.0.1]:81", unix.EINVAL},
		{handoff.SocketTCP6, "[fe80::1%eth0]:81", unix.EINVAL},
		{handoff.SocketUDP4, "127.0.0.1:81", unix.EINVAL},
	} {
		f, err := p.target.Listen(tc.kind, netip.MustParseAddrPort(tc.addr))
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.addr) {
			t.Errorf("%s on %s: %v, %v; want %v", tc.kind, tc.addr, f, err, tc.want)
		}
	}
	f, err := p.target.Listen(handoff.SocketTCP4, netip.MustParseAddrPort("0.0.0.0:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("nonblocking (%#x, %v): its holder would be woken by every client", flags, err)
	}
}

// The root directory is the one that the target's process has, in its own mount
// namespace.
func TestRoot(t *testing.T) {
	usertest.AsUser(t)
	p := inhabited(t, spawn.Auto, nil)
	target := mustOpen(t, p.PID)
	mounted, err := target.Start(context.Background(), Command{
		Path: "/bin/sh", Argv: []string{"sh", "-c", "mount -t tmpfs none /mnt && echo mine >/mnt/file && ln -s /mnt/file /mnt/link"}, Mount: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	if status, err := mounted.Wait(); err != nil || status.ExitStatus() != 0 {
		t.Fatalf("mount: %v, %v", status, err)
	}
	root, err := target.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	fd, err := unix.Openat2(int(root.Fd()), "mnt/link", &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "file")
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || string(b) != "mine\n" {
		t.Errorf("%q, %v", b, err)
	}
	byPath, err := OpenPaths("/proc/"+target.name[len("process "):]+"/ns/net", "")
	if err != nil {
		t.Fatal(err)
	}
	defer byPath.Close()
	if _, err := byPath.Root(); !errors.Is(err, ErrNoProcess) {
		t.Errorf("a path's root: %v", err)
	}
	p.Close()
	if f, err := target.Root(); err == nil {
		t.Errorf("root %v of a dead process", f)
	}
}
