package express

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/internal/usertest"
)

// connect starts a connection of the container's; local may be invalid.
func (w *world) connect(t testing.TB, local, remote netip.AddrPort) int {
	t.Helper()
	fd := w.socket(t, remote.Addr(), unix.SOCK_STREAM)
	if local.IsValid() {
		check(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		check(t, unix.Bind(fd, sockaddr(local)))
	}
	if err := unix.Connect(fd, sockaddr(remote)); err != unix.EINPROGRESS {
		t.Fatalf("connect: %v", err)
	}
	return fd
}

// accept takes the connection that the kernel made while a SYN was written back.
func (w *world) accept(t testing.TB, remote netip.AddrPort) (fd int, peer, local netip.AddrPort) {
	t.Helper()
	l := w.path.TCP4
	if remote.Addr().Is6() {
		l = w.path.TCP6
	}
	fd, peerSA, err := unix.Accept4(int(l.Fd()), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		t.Fatalf("accept right after the SYN: %v", err)
	}
	localSA, err := unix.Getsockname(fd)
	check(t, err)
	return fd, addrPort(peerSA), addrPort(localSA)
}

// hand connects a client by the express path and returns both ends.
func (w *world) hand(t testing.TB, local, remote netip.AddrPort) (client, server net.Conn, port netip.AddrPort) {
	t.Helper()
	before := len(w.seen(remote))
	c := w.connect(t, local, remote)
	syn := w.await(t, remote, before+1)
	if !syn.syn() {
		t.Fatalf("flags %#x, want a SYN", syn.flags)
	}
	w.writeBack(t, syn)
	s, peer, at := w.accept(t, remote)
	if peer != syn.src || at != remote {
		t.Fatalf("accepted %s from %s, want %s from %s", at, peer, remote, syn.src)
	}
	if !ready(c, unix.POLLOUT, patience) {
		t.Fatal("the client is not connected")
	}
	if errno, err := unix.GetsockoptInt(c, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
		t.Fatalf("connect: %v, %v", unix.Errno(errno), err)
	}
	dup, err := unix.Dup(c)
	check(t, err)
	return stream(t, dup, c), stream(t, s, -1), syn.src
}

// stream makes a net.Conn of a socket; the other descriptor of it is closed.
func stream(t testing.TB, fd, other int) net.Conn {
	t.Helper()
	if other >= 0 {
		// The cleanup of world.socket closes the number later; keep it taken.
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		check(t, err)
		check(t, unix.Dup3(null, other, unix.O_CLOEXEC))
		unix.Close(null)
	}
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	check(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

// exchange sends bytes both ways at once and checks them.
func exchange(t testing.TB, a, b net.Conn, size int) {
	t.Helper()
	want := bytes.Repeat([]byte("postern."), size/8)
	for _, c := range []net.Conn{a, b} {
		go func() {
			c.Write(want)
			c.(*net.TCPConn).CloseWrite()
		}()
	}
	for _, c := range []net.Conn{a, b} {
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes arrived, want %d; %v", len(got), len(want), err)
		}
	}
}

func everyEndpoint(t *testing.T, f func(t *testing.T, w *world)) { onEndpoints(t, endpoints, f) }

// bothEndpoints is for what does not depend on the MTU.
func bothEndpoints(t *testing.T, f func(t *testing.T, w *world)) { onEndpoints(t, endpoints[1:3], f) }

func onEndpoints(t *testing.T, list []endpoint, f func(t *testing.T, w *world)) {
	usertest.AsUser(t)
	for _, e := range list {
		t.Run(e.name, func(t *testing.T) {
			w := newWorld(t, e)
			w.express(t)
			f(t, w)
		})
	}
}

// Only the SYN crosses the interface.
func TestTCP(t *testing.T) {
	everyEndpoint(t, func(t *testing.T, w *world) {
		for _, remote := range []netip.AddrPort{remote4, remote6} {
			client, server, _ := w.hand(t, netip.AddrPort{}, remote)
			exchange(t, client, server, 1<<20)
			client.Close()
			server.Close()
			if list := w.seen(remote); len(list) != 1 {
				t.Errorf("%s: %d frames crossed the interface, want 1: %s", remote, len(list), describe(list))
			}
		}
	})
}

func describe(list []frame) (s string) {
	for _, f := range list[:min(len(list), 10)] {
		s += fmt.Sprintf("\n%s to %s, protocol %d, flags %#x, %d bytes", f.src, f.dst, f.proto, f.flags, len(f.raw))
	}
	return s
}
