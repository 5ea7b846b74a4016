package express

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/sockcall"
	"github.com/postern-net/postern/stack/stacktest"
)

func realDiag(t testing.TB) *Diag {
	t.Helper()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	d := newDiag(fd)
	t.Cleanup(d.Close)
	return d
}

func want(t *testing.T, d *Diag, what string, k flow.Key, s state) {
	t.Helper()
	if got, err := d.state(k); err != nil || got != s {
		t.Errorf("%s: state %d, %v; want %d", what, got, err, s)
	}
}

// What the kernel says about sockets of every kind that matters.
func TestDiagAsksTheKernel(t *testing.T) {
	eachSide(t, 1, func(t *testing.T, r *rig) {
		d := realDiag(t)
		at, l := r.server(t)
		client, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		accepted(t, l)
		from := client.LocalAddr().(*net.TCPAddr).AddrPort()
		k := flow.Key{Proto: flow.TCP, Initiating: from, Target: at}
		want(t, d, "a connection", k, established)
		want(t, d, "one from another port", flow.Key{Initiating: netip.AddrPortFrom(from.Addr(), 1), Target: at}, none)
		want(t, d, "one to another port", flow.Key{Initiating: from, Target: netip.AddrPortFrom(at.Addr(), 1)}, none)
		want(t, d, "a listener", flow.Key{Initiating: at, Target: netip.AddrPortFrom(at.Addr(), 9)}, none)

		hang, answer := r.hanging(t)
		fd, errno := sockcall.OpenTCP(hang.Addr())
		if errno != 0 {
			t.Fatal(errno)
		}
		defer unix.Close(fd)
		if errno := sockcall.Connect(fd, hang); errno != unix.EINPROGRESS {
			t.Fatal(errno)
		}
		k = flow.Key{Initiating: sockcall.LocalAddr(fd), Target: hang}
		want(t, d, "a client that waits", k, synSent)
		answer()
		stacktest.Eventually(t, "the connection", func() bool { s, _ := d.state(k); return s == established })
		r.diag.say(none, nil)
	})
}

// An IPv6 socket may speak IPv4.
func TestDiagMapped(t *testing.T) {
	if err := world(); err != nil {
		t.Fatal(err)
	}
	d := realDiag(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	mapped := netip.AddrPortFrom(netip.AddrFrom16(at.Addr().As16()), at.Port())
	if errno := sockcall.Connect(fd, mapped); errno != 0 {
		t.Fatal(errno)
	}
	from := sockcall.LocalAddr(fd)
	k := flow.Key{Initiating: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), Target: at}
	want(t, d, "an IPv6 socket that speaks IPv4", k, established)
}

// Whose datagram it is: a socket bound to the port is, connected or not, and nobody's
// port is nobody's.
func TestDiagSends(t *testing.T) {
	if err := world(); err != nil {
		t.Fatal(err)
	}
	d := realDiag(t)
	for _, s := range []struct{ own, peer, other string }{
		{"127.0.0.1", "192.0.2.1:53", "127.0.0.2"}, {"::1", "[2001:db8::1]:53", "::2"},
	} {
		for _, at := range []string{s.own, "::"} { // the wildcard of IPv6 is that of IPv4 too
			c, err := net.ListenPacket("udp", net.JoinHostPort(at, "0"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			from := netip.AddrPortFrom(netip.MustParseAddr(s.own), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			to := netip.MustParseAddrPort(s.peer)
			if !d.Sends(from, to) {
				t.Errorf("the socket at %s does not send from %s", c.LocalAddr(), from)
			}
			if d.Sends(netip.AddrPortFrom(from.Addr(), from.Port()^1), to) {
				t.Errorf("somebody sends from %s with another port", from)
			}
			if at == s.own && d.Sends(netip.AddrPortFrom(netip.MustParseAddr(s.other), from.Port()), to) {
				t.Errorf("somebody sends from %s, port %d", s.other, from.Port())
			}
		}
		l, err := net.ListenPacket("udp", net.JoinHostPort(s.own, "0"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		peer := l.LocalAddr().(*net.UDPAddr)
		c, err := net.Dial("udp", peer.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		from := c.LocalAddr().(*net.UDPAddr).AddrPort()
		if !d.Sends(from, peer.AddrPort()) {
			t.Errorf("the socket connected to %s does not send there", peer)
		}
		if d.Sends(from, netip.MustParseAddrPort(s.peer)) {
			t.Errorf("the socket connected to %s sends to %s", peer, s.peer)
		}
	}
}

func TestDiagClosed(t *testing.T) {
	d := realDiag(t)
	d.Close()
	if _, err := d.state(flow.Key{Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}); !errors.Is(err, unix.EBADF) {
		t.Errorf("asked a closed socket: %v", err)
	}
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG); err == nil {
		d.fd = fd // for the cleanup
	}
}

func TestAnswer(t *testing.T) {
	var asked [requestLen]byte
	k := flow.Key{Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}
	request(&asked, k, 7)
	good := make([]byte, answerLen)
	binary.NativeEndian.PutUint16(good[4:], sockDiagByFamily)
	binary.NativeEndian.PutUint32(good[8:], 7)
	good[unix.NLMSG_HDRLEN], good[atState] = unix.AF_INET, byte(synSent)
	copy(good[atAnswerID:], asked[atID:atID+tupleLen])
	change := func(at int, with ...byte) []byte {
		b := append([]byte(nil), good...)
		copy(b[at:], with)
		return b
	}
	refusal := change(4, unix.NLMSG_ERROR, 0)
	binary.NativeEndian.PutUint32(refusal[unix.NLMSG_HDRLEN:], ^uint32(unix.ENOENT)+1)
	denial := append([]byte(nil), refusal...)
	binary.NativeEndian.PutUint32(denial[unix.NLMSG_HDRLEN:], ^uint32(unix.EPERM)+1)
	for _, c := range []struct {
		what string
		b    []byte
		want state
		err  error
	}{
		{"the answer", good, synSent, nil},
		{"no such socket", refusal, none, nil},
		{"denied", denial, none, unix.EPERM},
		{"another number", change(8, 8), none, errStale},
		{"another kind", change(4, 9, 9), none, unix.EBADMSG},
		{"another port", change(atAnswerID, 9), none, nil},
		{"another address", change(atAnswerID+20, 9), none, nil},
		{"another family", change(unix.NLMSG_HDRLEN, unix.AF_INET6), none, nil},
		{"cut off", good[:answerLen-1], none, nil},
		{"cut off in the header", good[:unix.NLMSG_HDRLEN+3], none, unix.EBADMSG},
		{"empty", nil, none, unix.EBADMSG},
	} {
		if s, err := answer(c.b, &asked); s != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v; want %d, %v", c.what, s, err, c.want, c.err)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, answerLen), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		k := flow.Key{Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}
		if v6 {
			k = flow.Key{Initiating: netip.MustParseAddrPort("[fd00::100]:1"), Target: netip.MustParseAddrPort("[2001:db8::1]:2")}
		}
		var asked [requestLen]byte
		request(&asked, k, 1)
		if s, err := answer(b, &asked); err != nil && s != none {
			t.Errorf("state %d with error %v", s, err)
		}
	})
}

func BenchmarkDiag(b *testing.B) {
	d := realDiag(b)
	k := flow.Key{Initiating: netip.MustParseAddrPort("10.0.2.100:1"), Target: netip.MustParseAddrPort("192.0.2.1:2")}
	b.ReportAllocs()
	for b.Loop() {
		if s, err := d.state(k); err != nil || s != none {
			b.Fatal(s, err)
		}
	}
}
