package netstack

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// tcpWorld is a driver on a running engine, between a container and the host.
type tcpWorld struct {
	*Driver
	engine *stack.Engine
	g      *guest.Guest
}

// overlap4 is an address of the host that is also one of the container's network.
var overlap4 = netip.MustParseAddr("10.0.2.77")

func newTCPWorld(t *testing.T, kind tap.Kind) *tcpWorld {
	t.Helper()
	stacktest.NoLeaks(t)
	if err := udpHostAddresses(); err != nil {
		t.Fatal(err)
	}
	if err := nstest.AddAddr("lo", netip.PrefixFrom(overlap4, 32)); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	g := guest.New(t, kind, 1500)
	device, err := tap.New(g.Device, kind)
	if err != nil {
		t.Fatal(err)
	}
	e, err := stack.New(stack.Config{Device: device, MTU: 1500, ContainerMAC: g.MAC, Static: true})
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Addresses: udpPlan, Engine: e})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		d.Close()
	})
	g.Configure(t, netplan.Default())
	return &tcpWorld{d, e, g}
}

// listen opens a server in the container.
func (w *tcpWorld) listen(t *testing.T, at string) (net.Listener, netip.AddrPort) {
	t.Helper()
	var l net.Listener
	w.g.Do(t, func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	})
	t.Cleanup(func() { l.Close() })
	return l, addrPort(l.Addr())
}

// publish opens a port of the host.
func (w *tcpWorld) publish(t *testing.T, at string, target netip.AddrPort) netip.AddrPort {
	t.Helper()
	f, bound := tcpSocket(t, at)
	if err := w.Open(portdriver.Listener{Network: portdriver.NetTCP, Bound: bound, Target: target, File: f}); err != nil {
		t.Fatal(err)
	}
	return bound
}

// eachKind runs a test over both kinds of device.
func eachKind(t *testing.T, body func(t *testing.T, w *tcpWorld)) {
	for _, kind := range guest.Kinds {
		t.Run(kind.String(), func(t *testing.T) { body(t, newTCPWorld(t, kind)) })
	}
}

// connect dials from one of the host's addresses.
func connect(t *testing.T, from string, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", &net.TCPAddr{IP: net.ParseIP(from)}, net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(3 * stacktest.Patience))
	t.Cleanup(func() { c.Close() })
	return c
}

// What a server in the container sees of its clients, and that all bytes arrive.
func TestTCPServersSeeWhoTheClientIs(t *testing.T) {
	eachKind(t, func(t *testing.T, w *tcpWorld) {
		for i, c := range []struct{ server, at, from, seen string }{
			{"10.0.2.100:0", "0.0.0.0:0", "198.51.100.1", "198.51.100.1"},
			{"10.0.2.100:0", "127.0.0.1:0", "127.0.0.1", "10.0.2.2"},
			{"10.0.2.100:0", "0.0.0.0:0", "10.0.2.77", "10.0.2.2"},
			{"[fd00::100]:0", "[::]:0", "2001:db8::1", "2001:db8::1"},
			{"[fd00::100]:0", "[::1]:0", "::1", "fd00::2"},
			{"10.0.2.100:0", "[::1]:0", "::1", "10.0.2.2"},
			{"[fd00::100]:0", "127.0.0.1:0", "127.0.0.1", "fd00::2"},
		} {
			l, server := w.listen(t, c.server)
			to := w.publish(t, c.at, netip.AddrPortFrom(netip.Addr{}, server.Port()))
			if to.Addr().IsUnspecified() {
				to = netip.AddrPortFrom(netip.MustParseAddr(c.from), to.Port())
			}
			question, answer := bytes.Repeat([]byte{byte(i), 1, 2}, 1<<18), bytes.Repeat([]byte{byte(i), 3}, 1<<18)
			var wg sync.WaitGroup
			wg.Go(func() {
				s, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				if got := addrPort(s.RemoteAddr()).Addr().String(); got != c.seen {
					t.Errorf("%s to %s: the server sees %s, want %s", c.from, c.server, got, c.seen)
				}
				if b, err := io.ReadAll(s); err != nil || !bytes.Equal(b, question) {
					t.Errorf("%s: the server read %d bytes, %v", c.from, len(b), err)
				}
				_, _ = s.Write(answer)
			})
			client := connect(t, c.from, to)
			if _, err := client.Write(question); err != nil {
				t.Error(err)
			}
			_ = client.CloseWrite()
			if b, err := io.ReadAll(client); err != nil || !bytes.Equal(b, answer) {
				t.Errorf("%s: the client read %d bytes, %v", c.from, len(b), err)
			}
			wg.Wait()
			l.Close()
		}
		stacktest.Eventually(t, "the flows to end", func() bool { return w.Status().TCP == 0 && w.engine.Snapshot().TCPIn == 0 })
		if got := w.Status().Counters; got["published_other_family"] != 2 || got["published_other_source"] != 1 {
			t.Errorf("counted %v", got)
		}
	})
}

// The client of a port that nobody listens on is reset at once, and one whose server
// resets, resets; the engine's end resets the rest.
func TestTCPResets(t *testing.T) {
	eachKind(t, func(t *testing.T, w *tcpWorld) {
		l, server := w.listen(t, "10.0.2.100:0")
		to := w.publish(t, "127.0.0.1:0", server)
		l.Close()
		refusesTCP(t, to)
		if n := w.Status().Counters["published_refused_target"]; n != 1 {
			t.Errorf("%d refused, want 1", n)
		}
		l, server = w.listen(t, "10.0.2.100:0")
		to = w.publish(t, "127.0.0.1:0", server)
		client := connect(t, "127.0.0.1", to)
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = s.(*net.TCPConn).SetLinger(0)
		s.Close()
		isReset(t, client)
		client = connect(t, "127.0.0.1", to)
		if s, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		w.engine.Close()
		isReset(t, client)
		refusesTCP(t, to)
	})
}

// Connections come and go in numbers, and nothing is left of them.
func TestTCPManyConnections(t *testing.T) {
	const clients, rounds = 8, 40
	eachKind(t, func(t *testing.T, w *tcpWorld) {
		l, server := w.listen(t, "10.0.2.100:0")
		go func() {
			for {
				s, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer s.Close()
					_, _ = io.Copy(struct{ io.Writer }{s}, struct{ io.Reader }{s})
				}()
			}
		}()
		to := w.publish(t, "127.0.0.1:0", server)
		var wg sync.WaitGroup
		for range clients {
			wg.Go(func() {
				for range rounds {
					c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(to))
					if err != nil {
						t.Error(err)
						return
					}
					_ = c.SetDeadline(time.Now().Add(stacktest.Patience))
					echoes(t, c)
					c.Close()
				}
			})
		}
		wg.Wait()
		stacktest.Eventually(t, "the flows to end", func() bool { return w.Status().TCP == 0 && w.engine.Snapshot().TCPIn == 0 })
		if n := w.Status().Counters["published_accepted"]; n != clients*rounds {
			t.Errorf("%d accepted, want %d", n, clients*rounds)
		}
	})
}

// The driver tells networks apart and refuses those that it does not have.
func TestDriverDispatches(t *testing.T) {
	w := newTCPWorld(t, tap.TAP)
	f, _ := tcpSocket(t, "127.0.0.1:0")
	if err := w.Open(portdriver.Listener{Network: portdriver.NetUnix, Target: netip.MustParseAddrPort("10.0.2.100:80"), File: f}); err == nil {
		t.Error("a unix socket was taken")
	}
	if err := w.Open(portdriver.Listener{Network: portdriver.NetUnix}); err == nil {
		t.Error("no socket was taken")
	}
	if err := w.Open(udpListener(t, 1, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddrPort("10.0.2.100:53"))); err != nil {
		t.Error(err)
	}
	w.publish(t, "127.0.0.1:0", netip.MustParseAddrPort("10.0.2.100:80"))
	w.Shut(1)
	w.Close()
	w.Close()
}
