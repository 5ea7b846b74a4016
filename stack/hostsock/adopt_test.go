package hostsock

import (
	"bytes"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// bound opens a UDP socket as others do.
func bound(t *testing.T, at netip.Addr, dual bool) int {
	t.Helper()
	domain := unix.AF_INET
	if at.Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if at.Is6() && !dual {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(at, 0)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func adopted(t *testing.T, fd int) *Socket {
	t.Helper()
	s, err := Adopt(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// bytes returns how many came.
func (r *recorder) bytes() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.messages {
		n += len(m.Payload)
	}
	return n
}

// A client that asks one of several addresses gets its answer from that one, and
// batches stay batches both ways.
func TestAdoptedAnswersFromWhereItWasAsked(t *testing.T) {
	other4, other6 := netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("2001:db8::9")
	if err := nstest.AddAddr("lo", netip.PrefixFrom(other6, 128)); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	mapped := func(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
	same := func(a netip.Addr) netip.Addr { return a }
	for _, c := range []struct {
		name     string
		bind, to netip.Addr
		dual     bool
		shown    func(netip.Addr) netip.Addr
	}{
		{"v4", netip.IPv4Unspecified(), other4, false, same},
		{"v6", netip.IPv6Unspecified(), other6, false, same},
		{"dual", netip.IPv6Unspecified(), other4, true, mapped},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPoller(t)
			server, client := adopted(t, bound(t, c.bind, c.dual)), udp(t, loopbacks[0])
			if c.to.Is6() {
				client = udp(t, loopbacks[1])
			}
			var asked, answered recorder
			if err := errors.Join(p.Add(server, &asked), p.Add(client, &answered)); err != nil {
				t.Fatal(err)
			}
			var w Writer
			payload := bytes.Repeat([]byte("x"), 950)
			to := netip.AddrPortFrom(c.to, server.LocalAddr().Port())
			if _, err := w.Send(client, Packet{To: to, Segment: 100, Payload: payload}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "question", func() bool { n, _ := asked.numbers(); return n > 0 })
			m := asked.messages[0]
			from := client.LocalAddr()
			if m.From != netip.AddrPortFrom(c.shown(from.Addr()), from.Port()) || m.Local != c.shown(c.to) || m.Interface == 0 {
				t.Errorf("from %v to %v by interface %d", m.From, m.Local, m.Interface)
			}
			if m.Segment != 100 || len(m.Payload) != 950 {
				t.Errorf("%d bytes in segments of %d", len(m.Payload), m.Segment)
			}
			if n, err := w.Send(server, Packet{To: m.From, From: m.Local, Segment: 100, Payload: payload}); n != 10 || err != nil {
				t.Fatalf("answered with %d datagrams, %v", n, err)
			}
			server.loopFrom.Store(0) // the same without the kernel's help
			if n, err := w.Send(server, Packet{To: m.From, From: m.Local, Segment: 100, Payload: payload}); n != 10 || err != nil {
				t.Fatalf("answered with %d datagrams, %v", n, err)
			}
			eventually(t, "answer", func() bool { return answered.bytes() == 2*len(payload) })
			for _, m := range answered.messages {
				if m.From != to || m.Local.IsValid() {
					t.Errorf("answer from %v, want %v; local %v, want none", m.From, to, m.Local)
				}
			}
		})
	}
}

// A link-local client is answered by the interface that it came by.
func TestAdoptedAnswersLinkLocalClients(t *testing.T) {
	r := nstest.NewRouter(t)
	a, b := netip.MustParseAddr("fe80::a"), netip.MustParseAddr("fe80::b")
	if err := nstest.AddAddr("v0", netip.PrefixFrom(a, 64)); err != nil {
		t.Fatal(err)
	}
	var fd int
	r.Do(t, func() (err error) {
		if err = nstest.AddAddr("v1", netip.PrefixFrom(b, 64)); err == nil {
			fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		}
		if err == nil {
			err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(netip.IPv6Unspecified(), 0)))
		}
		return err
	})
	p := newPoller(t)
	server, client := adopted(t, bound(t, netip.IPv6Unspecified(), false)), adopted(t, fd)
	var asked, answered recorder
	if err := errors.Join(p.Add(server, &asked), p.Add(client, &answered)); err != nil {
		t.Fatal(err)
	}
	var index int
	r.Do(t, func() (err error) {
		index, err = linkIndex("v1")
		return err
	})
	var w Writer
	to := netip.AddrPortFrom(a, server.LocalAddr().Port())
	if _, err := w.Send(client, Packet{To: to, From: b, Interface: index, Payload: []byte("who")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "question", func() bool { n, _ := asked.numbers(); return n > 0 })
	m := asked.messages[0]
	if m.From.Addr() != b || m.Local != a {
		t.Errorf("from %v to %v", m.From, m.Local)
	}
	if _, err := w.Send(server, Packet{To: m.From, From: m.Local, Payload: []byte("I")}); err == nil {
		t.Error("sent to a link-local address without an interface")
	}
	if _, err := w.Send(server, Packet{To: m.From, From: m.Local, Interface: m.Interface, Payload: []byte("I")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "answer", func() bool { n, _ := answered.numbers(); return n > 0 })
	if m := answered.messages[0]; m.From != to {
		t.Errorf("answer from %v, want %v", m.From, to)
	}
}

// linkIndex asks the calling thread's namespace.
func linkIndex(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr)
	return int(ifr.Uint32()), err
}

// Another process that holds the same socket keeps it in the epoll instance; Close
// must not leave the poller waking for it.
func TestCloseOfASharedSocket(t *testing.T) {
	p := newPoller(t)
	fd := bound(t, loopbacks[0], false)
	other, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(other) })
	s := adopted(t, fd)
	var r recorder
	if err := p.Add(s, &r); err != nil {
		t.Fatal(err)
	}
	s.Close()
	var w Writer
	if _, err := w.Send(udp(t, loopbacks[0]), Packet{To: s.LocalAddr(), Payload: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	ready := -1
	err = p.raw.Control(func(epoll uintptr) {
		var events [4]unix.EpollEvent
		ready, err = unix.EpollWait(int(epoll), events[:], 100)
	})
	if ready != 0 || err != nil {
		t.Errorf("%d descriptors ready, %v; want none", ready, err)
	}
	if n, _, err := unix.Recvfrom(other, make([]byte, 10), unix.MSG_DONTWAIT); n != 1 || err != nil {
		t.Errorf("the other holder receives %d bytes, %v", n, err)
	}
}

func TestAdoptRefusesOtherSockets(t *testing.T) {
	for _, c := range []struct{ domain, typ int }{{unix.AF_INET, unix.SOCK_STREAM}, {unix.AF_UNIX, unix.SOCK_DGRAM}} {
		fd, err := unix.Socket(c.domain, c.typ|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Adopt(fd); !errors.Is(err, syscall.EPROTONOSUPPORT) {
			t.Errorf("domain %d: %v", c.domain, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("domain %d: the descriptor was left open", c.domain)
		}
	}
	if _, err := Adopt(-1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("no descriptor: %v", err)
	}
}
