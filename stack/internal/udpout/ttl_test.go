package udpout

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock/nstest"
)

func TestHopLimitIsPassedOnLessOne(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _ := newTable(t, nil)
		s := listenOn(t, outside[0])
		for _, c := range []struct{ in, want uint8 }{{2, 1}, {30, 29}, {63, 62}, {64, 64}, {255, 64}} {
			tb.Handle(Datagram{From: client, To: s.addr, Payload: []byte("x"), TTL: c.in})
			tb.Flush()
			if got := s.hopLimit(t); got != c.want {
				t.Errorf("hop limit %d became %d, want %d", c.in, got, c.want)
			}
		}
	})
}

// hopLimit reads the next datagram and returns the hop limit that it came with.
func (s server) hopLimit(t *testing.T) uint8 {
	t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// The option acts on what is received from now on, and on what waits already
	// for IPv4 and IPv6 alike, because the kernel reads the header when it copies.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
	})
	oob := make([]byte, 128)
	_, n, _, _, err := s.ReadMsgUDPAddrPort(make([]byte, 64), oob)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) == 0 {
		t.Fatalf("control messages %v: %v", msgs, err)
	}
	return msgs[0].Data[0]
}

func TestHopLimitUsedUp(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c := newTable(t, nil)
		s := listenOn(t, outside[0])
		for i, ttl := range []uint8{0, 1} {
			tb.Handle(Datagram{From: client, To: s.addr, Payload: []byte("x"), TTL: ttl})
			f := c.failed(t, i+1)[i]
			if f.kind != icmp.TimeExceeded || f.from != tb.cfg.Guard.Plan.Of(client.Addr()).Gateway {
				t.Errorf("%+v", f)
			}
		}
		tb.Flush()
		s.silent(t)
	})
}

func TestTraceroute(t *testing.T) {
	nstest.NewRouter(t)
	for _, c := range []struct{ client, target, router netip.AddrPort }{
		{client4, netip.AddrPortFrom(nstest.Beyond, 33434), netip.AddrPortFrom(nstest.Router4, 0)},
		{client6, netip.AddrPortFrom(nstest.Beyond6, 33434), netip.AddrPortFrom(nstest.Router6, 0)},
	} {
		tb, cont := newTable(t, nil)
		quote := inet.AppendUDP(nil, c.client, c.target, []byte("probe"))
		tb.Handle(Datagram{From: c.client, To: c.target, Payload: []byte("probe"), TTL: 2, Quote: quote})
		tb.Flush()
		f := cont.failed(t, 1)[0]
		if f.kind != icmp.TimeExceeded || f.from != c.router.Addr() || string(f.quote) != string(quote) {
			t.Errorf("%v: %+v", c.target, f)
		}
	}
}

func TestRouterErrorsComeFromTheGateway(t *testing.T) {
	nstest.NewRouter(t)
	tb, c := newTable(t, nil)
	for i, r := range []struct {
		target netip.Addr
		kind   icmp.Kind
	}{{nstest.Unreachable, icmp.HostUnreachable}, {nstest.Prohibited, icmp.AdminProhibited}} {
		send(tb, client4, netip.AddrPortFrom(r.target, 9), "x")
		f := c.failed(t, i+1)[i]
		if f.kind != r.kind || f.from != tb.cfg.Guard.Plan.V4.Gateway {
			t.Errorf("%v: %+v, want %v", r.target, f, r.kind)
		}
	}
}
