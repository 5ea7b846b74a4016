package splice

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/sockcall"
	"github.com/postern-net/postern/stack/stacktest"
)

// TestClientPortIsTaken: a socket of the container's own has the address that the
// client would show.
func TestClientPortIsTaken(t *testing.T) {
	w := newWorld(t, nil)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	squatter := listenTCP(t, "127.0.0.1:0")
	taken := addrOf(squatter.Addr())
	cl := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), taken.Port()).String(), port)
	seen := netip.MustParseAddrPort(cl.seen(t))
	if seen.Addr() != taken.Addr() || seen == taken {
		t.Errorf("the server sees %v, and %v was taken", seen, taken)
	}
	cl.talk(t, []byte("hello"))
	w.counted(portdriver.OtherSource, 1)
	if f := w.Flows(1); len(f) != 1 || f[0].Source != seen {
		t.Errorf("flows %+v, want the source %v", f, seen)
	}
}

// TestConnectionIsTaken: the client's address may be bound again, but there is a
// connection with all four addresses and ports already.
func TestConnectionIsTaken(t *testing.T) {
	w := newWorld(t, nil)
	target := server(t, container4)
	port := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	direct := dial(t, "127.0.0.1:0", target)
	direct.seen(t)
	taken := addrOf(direct.LocalAddr())
	cl := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.7"), taken.Port()).String(), port)
	seen := netip.MustParseAddrPort(cl.seen(t))
	if seen.Addr() != taken.Addr() || seen == taken {
		t.Errorf("the server sees %v, and %v was taken", seen, taken)
	}
	cl.talk(t, []byte("hello"))
	direct.talk(t, []byte("undisturbed"))
	w.counted(portdriver.OtherSource, 1)
}

// TestBind tries the addresses one after the other.
func TestBind(t *testing.T) {
	stacktest.NoLeaks(t)
	foreign := netip.MustParseAddr("192.0.2.1") // not ours: a socket that is not transparent cannot have it
	own := netip.MustParseAddr("127.0.0.3")
	squatter := listenTCP(t, "127.0.0.3:0")
	taken := addrOf(squatter.Addr())
	for _, c := range []struct {
		name         string
		source       netip.AddrPort
		gateway      netip.Addr
		anyPort      bool
		want         netip.Addr
		kept, failed bool
	}{
		{name: "the client's own", source: netip.AddrPortFrom(own, taken.Port()-1), want: own, kept: true},
		{name: "its port is taken", source: taken, gateway: gateway4, want: own},
		{name: "its port was taken", source: netip.AddrPortFrom(own, taken.Port()-1), anyPort: true, want: own},
		{name: "its address cannot be had", source: netip.AddrPortFrom(foreign, 4000), gateway: gateway4, want: gateway4},
		{name: "a unix client", source: netip.AddrPortFrom(gateway4, 0), want: gateway4},
		{name: "no address", source: netip.AddrPortFrom(foreign, 4000), gateway: foreign, failed: true},
		{name: "no gateway", source: netip.AddrPortFrom(foreign, 4000), failed: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd := ordinary(t, handoff.SocketTCP4, 1)[0]
			defer unix.Close(fd)
			prepare(fd)
			d := &Driver{cfg: Config{Addresses: portdriver.Addresses{Gateway4: c.gateway}}, local: ports{set: setPorts}}
			cn := &conn{d: d, server: fd, anyPort: c.anyPort}
			errno := cn.bind(portdriver.Route{Source: c.source, Target: netip.MustParseAddrPort("127.0.0.10:80")})
			if (errno != 0) != c.failed {
				t.Fatalf("bind: %v", errno)
			}
			if c.failed {
				return
			}
			got := sockcall.LocalAddr(fd)
			if got.Addr() != c.want || (got == c.source) != (c.kept || c.source.Port() == 0) || cn.anyPort == c.kept {
				t.Errorf("bound to %v, any port %v; the client is %v", got, cn.anyPort, c.source)
			}
		})
	}
}

// TestNoUsableSocket: the stock's sockets cannot be bound at all.
func TestNoUsableSocket(t *testing.T) {
	w := newWorld(t, func(c *Config) {
		c.Stock = blunt{c.Stock, t}
	})
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	refused(t, port)
	w.counted(portdriver.RefusedSockets, 1)
}

// blunt is a stock whose sockets someone has bound after their inspection.
type blunt struct {
	Stock
	tb testing.TB
}

func (b blunt) Take(kind handoff.SocketKind) (int, bool) {
	fd, ok := b.Stock.Take(kind)
	if ok {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 9}}); err != nil {
			b.tb.Error(err)
		}
	}
	return fd, ok
}

// TestAfterErrno fixes what follows the errors that matter.
func TestAfterErrno(t *testing.T) {
	for errno, want := range map[unix.Errno]dialStep{
		0: dialDone, unix.EISCONN: dialDone, unix.EINPROGRESS: dialPending, unix.EALREADY: dialPending,
		unix.EADDRNOTAVAIL: dialTaken, unix.ECONNREFUSED: dialRefused, unix.EHOSTUNREACH: dialRefused, unix.ETIMEDOUT: dialRefused,
	} {
		if got := afterConnect(errno); got != want {
			t.Errorf("connect: %v leads to %d, want %d", errno, got, want)
		}
	}
}

// TestFullBacklog: a server that does not accept makes its clients wait, and no
// others; it gets them when it does.
func TestFullBacklog(t *testing.T) {
	w := newWorld(t, nil)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: container4.As4()}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	lazy := w.publish(portdriver.Listener{Target: sockcall.LocalAddr(fd)}, "127.0.0.1")
	other := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	const clients = admission.MaxPendingEach + 20
	for range clients {
		dial(t, "", lazy)
	}
	stacktest.Eventually(t, "the listener to have its share of pending connections", func() bool {
		return w.pending.Load() == admission.MaxPendingEach
	})
	dial(t, "", other).talk2(t)
	if err := unix.Listen(fd, clients); err != nil {
		t.Fatal(err)
	}
	for range clients {
		c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(c)
	}
	stacktest.Eventually(t, "nothing to be pending", func() bool { return w.pending.Load() == 0 })
	w.counted(portdriver.RefusedTarget, 0)
}

// talk2 is a whole dialogue.
func (c *client) talk2(tb testing.TB) {
	tb.Helper()
	c.seen(tb)
	c.talk(tb, []byte("hello"))
}
