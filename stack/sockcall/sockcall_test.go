package sockcall

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSockaddr(t *testing.T) {
	for _, s := range []string{"192.0.2.1:80", "[2001:db8::1]:65535", "127.0.0.1:0"} {
		want := netip.MustParseAddrPort(s)
		sa := pack(want)
		if got := sa.unpack(); got != want {
			t.Errorf("%v came back as %v", want, got)
		}
	}
	mapped := pack(netip.MustParseAddrPort("[::ffff:192.0.2.1]:80"))
	if got := mapped.unpack(); got != netip.MustParseAddrPort("192.0.2.1:80") {
		t.Errorf("a mapped address came back as %v", got)
	}
	for _, sa := range []sockaddr{{}, {raw: unix.RawSockaddrInet6{Family: unix.AF_UNIX}, len: 2}, {raw: unix.RawSockaddrInet6{Family: unix.AF_INET}, len: 2}} {
		if got := sa.unpack(); got.IsValid() {
			t.Errorf("%+v is taken for %v", sa, got)
		}
	}
}

// A connection by these calls alone, with the addresses that both ends have.
func TestConnection(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		listener, client := open(t, at), open(t, at)
		if errno := Bind(listener, netip.MustParseAddrPort(at)); errno != 0 {
			t.Fatal(errno)
		}
		if err := unix.Listen(listener, 1); err != nil {
			t.Fatal(err)
		}
		if fd, _, errno := Accept(listener); errno != unix.EAGAIN {
			t.Fatalf("accept before there is anything: %d, %v", fd, errno)
		}
		if errno := Connect(client, LocalAddr(listener)); errno != 0 && errno != unix.EINPROGRESS {
			t.Fatal(errno)
		}
		server, peer, errno := Accept(listener)
		if errno != 0 {
			t.Fatal(errno)
		}
		if want := LocalAddr(client); peer != want || LocalAddr(server) != LocalAddr(listener) {
			t.Errorf("the server %s sees %s, want %s", LocalAddr(server), peer, want)
		}
		Reset(server)
		if _, err := unix.Read(client, make([]byte, 1)); err != unix.ECONNRESET {
			t.Errorf("after a reset the client reads %v", err)
		}
	}
}

func open(t *testing.T, at string) int {
	t.Helper()
	fd, errno := OpenTCP(netip.MustParseAddrPort(at).Addr())
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}
