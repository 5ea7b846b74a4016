package drivertest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/proxyproto"
)

var furtherCases = []testCase{
	{
		name:  "Proxy/Header",
		holds: "the server reads who the client is before his first byte (HAProxy, proxy-protocol.txt, versions 1 and 2)",
		needs: []Feature{Proxy},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, proxyHeader) },
	},
	{
		name:  "Unix/HostListens",
		holds: "clients of a unix socket of the host reach the container's TCP server",
		needs: []Feature{Unix},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, unixToTCP) },
	},
	{
		name:  "Unix/ContainerListens",
		holds: "clients of a port reach a unix socket in the container",
		needs: []Feature{Unix},
		run:   tcpToUnix,
	},
	{
		name:  "Unix/Reverse",
		holds: "the container's processes reach a unix socket of the host through a port of theirs",
		needs: []Feature{Unix},
		run:   func(s *suite, t *testing.T) { s.eachFamily(t, reverse) },
	},
}

func proxyHeader(s *suite, t *testing.T, f family) {
	for _, version := range []int{proxyproto.V1, proxyproto.V2} {
		addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
		l := s.listen(t, addr, -1)
		spec := s.spec(portdriver.TCP, s.remote(), f, addr)
		spec.Proxy = version
		p := s.publish(t, spec)
		c := s.connect(t, s.remote(), p.at(s.remote(), f), l)
		want := proxyproto.Header{Version: version, Source: addrPort(c.client.LocalAddr()), Destination: p.at(s.remote(), f)}
		// Before the client has sent anything.
		if got := readHeader(t, c.server); got != want {
			t.Errorf("header %+v, want %+v", got, want)
		}
		if err := c.bothWays(5, 1<<20); err != nil {
			t.Errorf("after the header: %v", err)
		}
	}
}

// readHeader reads byte by byte, so that nothing of what follows is taken.
func readHeader(t *testing.T, c net.Conn) proxyproto.Header {
	t.Helper()
	var b []byte
	for {
		h, n, err := proxyproto.Parse(b)
		if err == nil && n == len(b) {
			return h
		}
		if err == nil || !errors.Is(err, proxyproto.ErrIncomplete) {
			t.Fatalf("%q: %d bytes of header, %v", b, n, err)
		}
		b = append(b, 0)
		if _, err := c.Read(b[len(b)-1:]); err != nil {
			t.Fatalf("after %q: %v", b[:len(b)-1], err)
		}
	}
}

func unixToTCP(s *suite, t *testing.T, f family) {
	addr := netip.AddrPortFrom(s.ownTarget(f), s.newServerPort())
	l := s.listen(t, addr, -1)
	path := filepath.Join(t.TempDir(), "published")
	p := s.publish(t, portdriver.Spec{
		Proto: portdriver.TCP, Host: portdriver.Side{Path: path},
		Container: portdriver.Side{Addr: addr.Addr(), Port: addr.Port()},
	})
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server := accept(t, l)
	t.Logf("the server saw %s", server.RemoteAddr())
	converseStreams(t, client, server)
	p.remove(t)
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Errorf("%s still takes clients after its rule was removed", path)
	}
}

func tcpToUnix(s *suite, t *testing.T) {
	path := filepath.Join(t.TempDir(), "server")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	spec := s.spec(portdriver.TCP, s.remote(), v4, netip.AddrPort{})
	spec.Container = portdriver.Side{Path: path}
	p := s.publish(t, spec)
	client, err := s.remote().dial(t, 0, p.at(s.remote(), v4))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	converseStreams(t, client, acceptUnix(t, l))
	l.Close()
	s.refuses(t, s.remote(), p.at(s.remote(), v4))
}

func reverse(s *suite, t *testing.T, f family) {
	path := filepath.Join(t.TempDir(), "server")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.AddrPortFrom(pick(f, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), s.newServerPort())
	s.publish(t, portdriver.Spec{
		Proto: portdriver.TCP, Reverse: true, Host: portdriver.Side{Path: path},
		Container: portdriver.Side{Addr: at.Addr(), Port: at.Port()},
	})
	file := s.socket(t, socketOrder{Network: dialTCP, Addr: at})
	defer file.Close()
	client, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	converseStreams(t, client, acceptUnix(t, l))
}

func acceptUnix(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	soon(t, l.(*net.UnixListener))
	c, err := l.Accept()
	if err != nil {
		t.Fatalf("the server's connection: %v", err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// converseStreams sends a mebibyte each way, one after the other, each direction
// with its end.
func converseStreams(t *testing.T, a, b net.Conn) {
	t.Helper()
	for range 2 {
		soon(t, a)
		soon(t, b)
		sent := make(chan error, 1)
		go func() { sent <- produce(a.(halfCloser), 9, 1<<20) }()
		if err := errors.Join(consume(b, 9, 1<<20), <-sent); err != nil {
			t.Fatal(err)
		}
		a, b = b, a
	}
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface {
	io.Writer
	CloseWrite() error
}
