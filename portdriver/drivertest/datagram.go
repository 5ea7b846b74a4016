package drivertest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
)

var datagramCases = []testCase{
	{
		name:  "UDP/ManyClients",
		holds: "64 clients at once, each gets what is meant for him and nothing else",
		needs: []Feature{UDP},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, manyClients) },
	},
	{
		name:  "UDP/Sizes",
		holds: "a datagram arrives whole and as one, up to 60,000 bytes (RFC 768; RFC 8200, section 5 for its fragments)",
		needs: []Feature{UDP},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, datagramSizes) },
	},
	{
		name:  "UDP/Empty",
		holds: "a datagram without payload is a datagram (RFC 768: length 8), both ways",
		needs: []Feature{UDP, Empty},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, empty) },
	},
	{
		name:  "UDP/ReplyAddress",
		holds: "on a host with several addresses, the reply comes from the one that was sent to (RFC 1122, section 4.1.3.5)",
		needs: []Feature{UDP, ReplyAddress},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, replyAddress) },
	},
	{
		name:  "UDP/LateServer",
		holds: "a client who spoke before the server was there is heard once it is",
		needs: []Feature{UDP},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, lateServer) },
	},
	{
		name:  "UDP/Removed",
		holds: "nothing reaches the server through a removed port, and the port can be published again at once",
		needs: []Feature{UDP},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, removedUDP) },
	},
	{
		name:  "UDP/SamePortAsTCP",
		holds: "TCP and UDP are separate spaces of ports",
		needs: []Feature{UDP},
		run:   samePort,
	},
}

// serveUDP publishes a UDP server to a place.
func (s *suite) serveUDP(t *testing.T, from place, f family) (*net.UDPConn, *published) {
	t.Helper()
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	server := s.listenUDP(t, addr)
	return server, s.publish(t, s.spec(portdriver.UDP, from, f, addr))
}

// arrive sends a datagram until the server gets it, and returns whom the server saw.
// UDP loses datagrams; one that is lost five times is not lost by chance.
func arrive(t *testing.T, client *net.UDPConn, at netip.AddrPort, server *net.UDPConn, text []byte) netip.AddrPort {
	t.Helper()
	from, err := transfer(client, at, server, text)
	if err != nil {
		t.Fatalf("%d bytes to the server: %v", len(text), err)
	}
	return from
}

// reply sends a datagram back and checks that it comes from where the client sent to.
func reply(t *testing.T, server *net.UDPConn, to netip.AddrPort, client *net.UDPConn, at netip.AddrPort, text []byte) {
	t.Helper()
	from, err := transfer(server, to, client, text)
	if err != nil {
		t.Fatalf("%d bytes to the client: %v", len(text), err)
	}
	if from != at {
		t.Errorf("the reply came from %s, want %s", from, at)
	}
}

// attempts is how often a datagram is sent.
const attempts = 5

func transfer(sender *net.UDPConn, to netip.AddrPort, receiver *net.UDPConn, text []byte) (from netip.AddrPort, err error) {
	buf := make([]byte, 65536)
	for range attempts {
		if _, err := sender.WriteToUDPAddrPort(text, to); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return from, err
		}
		if err := receiver.SetReadDeadline(time.Now().Add(patience / attempts)); err != nil {
			return from, err
		}
		var n int
		n, from, err = receiver.ReadFromUDPAddrPort(buf)
		if timedOut(err) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err == nil && !bytes.Equal(buf[:n], text) {
			err = fmt.Errorf("%d bytes came that are not those that were sent", n)
		}
		return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), err
	}
	return from, err
}

// echoUDP sends datagrams back until its socket is closed.
func echoUDP(server *net.UDPConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := server.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if _, err := server.WriteToUDPAddrPort(buf[:n], from); err != nil {
			return
		}
	}
}

func manyClients(s *suite, t *testing.T, f family) {
	const clients, rounds = 64, 30
	server, p := s.serveUDP(t, s.remote(), f)
	go echoUDP(server)
	at := p.at(s.remote(), f)
	errs := make(chan error, clients)
	for i := range clients {
		c := s.remote().packet(t, f)
		go func() { errs <- converse(c, at, i, rounds) }()
	}
	for range clients {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// converse is one client's talk with an echo server.
func converse(c *net.UDPConn, at netip.AddrPort, id, rounds int) error {
	lost := 0
	buf := make([]byte, 2048)
	for round := range rounds {
		text := fmt.Sprintf("client %d, round %d", id, round)
		for got := ""; got != text; {
			if _, err := c.WriteToUDPAddrPort([]byte(text), at); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(patience / attempts)); err != nil {
				return err
			}
			n, _, err := c.ReadFromUDPAddrPort(buf)
			if timedOut(err) {
				if lost++; lost >= attempts {
					return fmt.Errorf("client %d: %d datagrams without an answer", id, lost)
				}
				continue
			}
			if err != nil {
				return err
			}
			got = string(buf[:n])
			var who, what int
			if _, err := fmt.Sscanf(got, "client %d, round %d", &who, &what); err != nil || who != id || what > round {
				return fmt.Errorf("client %d got %q in round %d", id, got, round)
			}
		}
	}
	return nil
}

func datagramSizes(s *suite, t *testing.T, f family) {
	for _, from := range []place{s.remote(), s.onLoopback()} {
		server, p := s.serveUDP(t, from, f)
		client, at := from.packet(t, f), p.at(from, f)
		for _, n := range []int{1, 512, 1452, 1472, 1473, 4096, 9000, 60000} {
			text := bytes.Repeat([]byte{byte(n), byte(n >> 8), 'x'}, n/3+1)[:n]
			seen := arrive(t, client, at, server, text)
			reply(t, server, seen, client, at, text)
		}
	}
}

func empty(s *suite, t *testing.T, f family) {
	server, p := s.serveUDP(t, s.remote(), f)
	client, at := s.remote().packet(t, f), p.at(s.remote(), f)
	seen := arrive(t, client, at, server, nil)
	reply(t, server, seen, client, at, nil)
}

func replyAddress(s *suite, t *testing.T, f family) {
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	server := s.listenUDP(t, addr)
	spec := s.spec(portdriver.UDP, s.remote(), f, addr)
	spec.Host.Addr = pick(f, netip.IPv4Unspecified(), netip.IPv6Unspecified())
	p := s.publish(t, spec)
	hosts := []netip.Addr{s.remote().host(f), pick(f, second4, second6)}
	for _, host := range hosts {
		client, at := s.remote().packet(t, f), netip.AddrPortFrom(host, p.spec.Host.Port)
		seen := arrive(t, client, at, server, []byte("hello"))
		reply(t, server, seen, client, at, []byte("hello yourself"))
	}
	// One client who uses both addresses has two conversations.
	client := s.remote().packet(t, f)
	for _, host := range append(hosts, hosts...) {
		at := netip.AddrPortFrom(host, p.spec.Host.Port)
		seen := arrive(t, client, at, server, []byte("hello "+host.String()))
		reply(t, server, seen, client, at, []byte("from "+host.String()))
	}
}

func lateServer(s *suite, t *testing.T, f family) {
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	p := s.publish(t, s.spec(portdriver.UDP, s.remote(), f, addr))
	client, at := s.remote().packet(t, f), p.at(s.remote(), f)
	for range 3 {
		// Not lost for certain: it may be under way for as long as the server needs.
		if _, err := client.WriteToUDPAddrPort([]byte("client 1, round 0"), at); err != nil {
			t.Fatal(err)
		}
	}
	server := s.listenUDP(t, addr)
	go echoUDP(server)
	if err := converse(client, at, 1, 3); err != nil {
		t.Error(err)
	}
}

func removedUDP(s *suite, t *testing.T, f family) {
	server, p := s.serveUDP(t, s.remote(), f)
	client, at := s.remote().packet(t, f), p.at(s.remote(), f)
	for range 3 {
		seen := arrive(t, client, at, server, []byte("hello"))
		reply(t, server, seen, client, at, []byte("hello yourself"))
		p.remove(t)
		if _, err := client.WriteToUDPAddrPort([]byte("too late"), at); err != nil {
			t.Fatal(err)
		}
		if err := server.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := server.ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
			t.Errorf("%d bytes came through a removed port", n)
		}
		p = s.publish(t, p.spec)
	}
}

func samePort(s *suite, t *testing.T) {
	l, p := s.serve(t, s.remote(), v4)
	server := s.listenUDP(t, netip.AddrPortFrom(p.spec.Container.Addr, p.spec.Container.Port))
	spec := p.spec
	spec.Proto = portdriver.UDP
	q := s.publish(t, spec)
	s.prompt(t, p.at(s.remote(), v4), l)
	client, at := s.remote().packet(t, v4), q.at(s.remote(), v4)
	reply(t, server, arrive(t, client, at, server, []byte("hello")), client, at, []byte("hello yourself"))
}
