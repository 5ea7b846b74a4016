package drivertest

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

var ruleCases = []testCase{
	{
		name:  "Rule/Removed",
		holds: "a removed port refuses clients, and the host's port is free",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, removed) },
	},
	{
		name:  "Rule/ConnectionsOutlive",
		holds: "connections go on when their port is removed",
		needs: []Feature{Outlive},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, outlive) },
	},
	{
		name:  "Rule/AgainAtOnce",
		holds: "a removed port can be published again at once, though old connections have its address (SO_REUSEADDR, socket(7))",
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, again) },
	},
	{
		name:  "Rule/Taken",
		holds: "a port that is in use cannot be published, and the one who has it keeps it",
		run:   taken,
	},
	{
		name:  "Rule/Range",
		holds: "a range's ports lead to the container's in the same order; one that is in use leaves no part of it behind",
		needs: []Feature{Range},
		run:   ports,
	},
	{
		name:  "Rule/OwnAddress",
		holds: "without an address of the container, its own one of the client's family is meant, or the other one if nothing listens there",
		needs: []Feature{OwnAddress, IPv6},
		run:   ownAddress,
	},
}

func removed(s *suite, t *testing.T, f family) {
	l, p := s.serve(t, s.remote(), f)
	at := p.at(s.remote(), f)
	c := s.connect(t, s.remote(), at, l)
	exchange(t, c.client, c.server, "hello")
	p.remove(t)
	if err := s.dialRefused(t, at); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting to a removed port: %v, want ECONNREFUSED", err)
	}
	free, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatalf("the removed port is still taken: %v", err)
	}
	free.Close()
}

// dialRefused dials a port that should refuse.
func (s *suite) dialRefused(t *testing.T, at netip.AddrPort) error {
	t.Helper()
	c, err := s.remote().dial(t, 0, at)
	if err == nil {
		c.Close()
	}
	return err
}

func outlive(s *suite, t *testing.T, f family) {
	l, p := s.serve(t, s.remote(), f)
	c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
	exchange(t, c.client, c.server, "before")
	p.remove(t)
	if err := s.dialRefused(t, p.at(s.remote(), f)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting to a removed port: %v, want ECONNREFUSED", err)
	}
	if err := c.bothWays(3, 1<<20); err != nil {
		t.Errorf("a connection of a removed port: %v", err)
	}
}

func again(s *suite, t *testing.T, f family) {
	l, p := s.serve(t, s.remote(), f)
	for range 5 {
		c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
		exchange(t, c.client, c.server, "hello")
		p.remove(t)
		p = s.publish(t, p.spec)
	}
	c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
	exchange(t, c.client, c.server, "hello again")
}

func taken(s *suite, t *testing.T) {
	l, p := s.serve(t, s.remote(), v4)
	if q, err := s.tryPublish(t, p.spec); err == nil {
		t.Errorf("port %d was published twice", q.spec.Host.Port)
	}
	spec := p.spec
	spec.Host.Port = s.newHostPorts(1)
	other, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(spec.Host.Addr, spec.Host.Port)))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := s.tryPublish(t, spec); err == nil {
		t.Errorf("port %d of another process was published", spec.Host.Port)
	}
	s.prompt(t, p.at(s.remote(), v4), l)
}

func ports(s *suite, t *testing.T) {
	const n = 8
	first := s.newServerPort()
	var servers []*net.TCPListener
	for i := range n {
		if i > 0 {
			s.newServerPort()
		}
		servers = append(servers, s.listen(t, netip.AddrPortFrom(s.ownTarget(v4), first+uint16(i)), -1))
	}
	spec := s.spec(portdriver.TCP, s.remote(), v4, netip.AddrPortFrom(s.ownTarget(v4), first))
	spec.Count = n
	p := s.publish(t, spec)
	for i, l := range servers {
		at := p.at(s.remote(), v4)
		s.prompt(t, netip.AddrPortFrom(at.Addr(), at.Port()+uint16(i)), l)
	}
	p.remove(t)
	last := netip.AddrPortFrom(p.spec.Host.Addr, p.spec.Host.Port+n-1)
	other, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(last))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := s.tryPublish(t, p.spec); err == nil {
		t.Error("a range with a port that is taken was published")
	}
	if err := s.dialRefused(t, p.at(s.remote(), v4)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the first port of a range that could not be published: %v, want ECONNREFUSED", err)
	}
}

func ownAddress(s *suite, t *testing.T) {
	for _, listens := range s.families() {
		for _, client := range s.families() {
			t.Run("server on "+string(listens)+"/client on "+string(client), func(t *testing.T) {
				port := s.newServerPort()
				l := s.listen(t, netip.AddrPortFrom(s.ownTarget(listens), port), -1)
				p := s.publish(t, s.spec(portdriver.TCP, s.remote(), client, netip.AddrPortFrom(netip.Addr{}, port)))
				c := s.connect(t, s.remote(), p.at(s.remote(), client), l)
				s.seen.add("tcp", client, s.remote(), "own "+string(listens), addrPort(c.client.LocalAddr()), addrPort(c.server.RemoteAddr()))
				exchange(t, c.client, c.server, "hello")
				if s.claims(Source) && client == listens && addrPort(c.client.LocalAddr()) != addrPort(c.server.RemoteAddr()) {
					t.Errorf("the server saw %s, want %s", c.server.RemoteAddr(), c.client.LocalAddr())
				}
			})
		}
	}
}
