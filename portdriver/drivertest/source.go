package drivertest

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/portdriver"
)

var sourceCases = []testCase{
	{
		name:  "TCP/ClientAddress",
		holds: "the server sees who the client is: his own address and port; the gateway, or loopback, for the host's loopback",
		run:   func(s *suite, t *testing.T) { s.eachWay(t, s.tcpSource) },
	},
	{
		name:  "UDP/ClientAddress",
		holds: "as for TCP, and the reply comes from the published address",
		needs: []Feature{UDP},
		run:   func(s *suite, t *testing.T) { s.eachWay(t, s.udpSource) },
	},
	{
		name:  "TCP/PrivilegedClientPort",
		holds: "a client's port below 1024 (RFC 6335, section 6) is the client's port all the same",
		needs: []Feature{Source},
		run:   privilegedClient,
	},
	{
		name:  "TCP/ClientAddressTaken",
		holds: "one client address and port may have several connections, as long as their targets differ (RFC 9293, section 3.3); here two published ports lead to one server",
		run:   addressTaken,
	},
}

// eachWay runs f for every family, place and target.
func (s *suite) eachWay(t *testing.T, f func(*testing.T, family, place, target)) {
	for _, fam := range s.families() {
		for _, from := range s.places {
			for _, to := range s.targets(fam) {
				t.Run(string(fam)+"/"+from.name+"/"+to.name, func(t *testing.T) { f(t, fam, from, to) })
			}
		}
	}
}

// expected is what the server has to see; the zero AddrPort when the driver does not
// say.
func (s *suite) expected(source Feature, f family, from place, to target, client netip.AddrPort) netip.AddrPort {
	switch {
	case !s.claims(source):
		return netip.AddrPort{}
	case !client.Addr().IsLoopback():
		return client
	case !s.claims(Gateway):
		return netip.AddrPort{}
	case to.addr.IsLoopback():
		return netip.AddrPortFrom(from.addr(f), client.Port()) // 127.0.0.1 or ::1
	}
	return netip.AddrPortFrom(pick(f, s.Addresses.Gateway4, s.Addresses.Gateway6), client.Port())
}

// check compares what a server saw with what it has to see, and keeps it for the
// table.
func (s *suite) check(t *testing.T, proto string, source Feature, f family, from place, to target, client, seen netip.AddrPort) {
	t.Helper()
	s.seen.add(proto, f, from, to.name, client, seen)
	want := s.expected(source, f, from, to, client)
	if want.IsValid() && seen != want {
		t.Errorf("the server saw %s, want %s", seen, want)
	}
	if seen.Addr().IsLoopback() && s.claims(source, Gateway) && !client.Addr().IsLoopback() {
		t.Errorf("%s seemed to the server to be on its own loopback: %s", client, seen)
	}
}

func (s *suite) tcpSource(t *testing.T, f family, from place, to target) {
	addr := netip.AddrPortFrom(to.addr, s.newServerPort())
	l := s.listen(t, addr, -1)
	p := s.publish(t, s.spec(portdriver.TCP, from, f, addr))
	c := s.connect(t, from, p.at(from, f), l)
	s.check(t, "tcp", Source, f, from, to, addrPort(c.client.LocalAddr()), addrPort(c.server.RemoteAddr()))
	if got := addrPort(c.server.LocalAddr()); got != addr {
		t.Errorf("the connection came to %s, want %s", got, addr)
	}
	exchange(t, c.client, c.server, "hello")
}

func (s *suite) udpSource(t *testing.T, f family, from place, to target) {
	addr := netip.AddrPortFrom(to.addr, s.newServerPort())
	server := s.listenUDP(t, addr)
	p := s.publish(t, s.spec(portdriver.UDP, from, f, addr))
	client := from.packet(t, f)
	at := p.at(from, f)
	seen := arrive(t, client, at, server, []byte("hello"))
	s.check(t, "udp", SourceUDP, f, from, to, addrPort(client.LocalAddr()), seen)
	reply(t, server, seen, client, at, []byte("good day to you"))
}

func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// exchange sends text both ways.
func exchange(t *testing.T, a, b *net.TCPConn, text string) {
	t.Helper()
	for range 2 {
		soon(t, a)
		soon(t, b)
		if _, err := a.Write([]byte(text)); err != nil {
			t.Fatalf("send: %v", err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, []byte(text)) {
			t.Fatalf("got %q, %v; want %q", got, err, text)
		}
		a, b = b, a
	}
}

func privilegedClient(s *suite, t *testing.T) {
	for i, f := range s.families() {
		l, p := s.serve(t, s.remote(), f)
		c := s.connectFrom(t, s.remote(), uint16(500+i), p.at(s.remote(), f), l)
		if got, want := addrPort(c.server.RemoteAddr()), addrPort(c.client.LocalAddr()); got != want {
			t.Errorf("the server saw %s, want %s", got, want)
		}
		exchange(t, c.client, c.server, "hello")
	}
}

func addressTaken(s *suite, t *testing.T) {
	for i, f := range s.families() {
		l, first := s.serve(t, s.remote(), f)
		spec := first.spec
		spec.Host.Port = 0
		second := s.publish(t, spec)
		from := uint16(31000 + i)
		a := s.connectFrom(t, s.remote(), from, first.at(s.remote(), f), l)
		b := s.connectFrom(t, s.remote(), from, second.at(s.remote(), f), l)
		t.Logf("one client %s, the server saw %s and %s", a.client.LocalAddr(), a.server.RemoteAddr(), b.server.RemoteAddr())
		exchange(t, a.client, a.server, "the first")
		exchange(t, b.client, b.server, "the second")
	}
}
