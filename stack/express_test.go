package stack_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// expressFiles are what an engine needs: a listener, here of the host, and a sock_diag
// socket.
func expressFiles(t *testing.T) (listener, diag *os.File) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if listener, err = l.File(); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	return listener, os.NewFile(uintptr(fd), "sock_diag")
}

func expressLoops(t *testing.T) *relay.Loops {
	t.Helper()
	loops, err := relay.NewLoops(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(loops.Close)
	return loops
}

// Without a socket of the container's a SYN takes the universal path, whether the
// express path has looked at it or not.
func TestExpressLeavesForeignSYNs(t *testing.T) {
	stacktest.NoLeaks(t)
	loops := expressLoops(t)
	listener, diag := expressFiles(t)
	dev, peer := stacktest.NewPair(stacktest.AllOffloads)
	e, err := stack.New(stack.Config{
		Device: dev, MTU: 1500, ContainerMAC: stacktest.ContainerMAC, Static: true, HostLoopback: true,
		Express: &stack.Express{TCP4: listener, Diag: diag, Loops: loops},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	t.Cleanup(func() {
		e.Close()
		<-ended
	})
	from, plan := insides[0], netplan.Default().V4
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	for i, c := range []struct {
		to     netip.AddrPort
		flags  uint8
		looked uint64
	}{
		{netip.AddrPortFrom(plan.Gateway, port), stacktest.SYN | stacktest.ACK, 1},
		{netip.AddrPortFrom(plan.Resolver, 53), stacktest.SYN | stacktest.ACK, 1},
		{netip.AddrPortFrom(plan.Resolver, 80), stacktest.RST | stacktest.ACK, 1},
		{netip.AddrPortFrom(plan.Gateway, 1), stacktest.RST | stacktest.ACK, 2},
	} {
		client := netip.AddrPortFrom(from.Addr(), uint16(5000+i))
		peer.InjectIP(t, stacktest.Segment{Src: client, Dst: c.to, Seq: 7, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}.Packet())
		stacktest.IPv4(t, peer.Receive(t), stacktest.Src(c.to.Addr()), stacktest.Dst(client.Addr()),
			stacktest.TCP(stacktest.SrcPort(c.to.Port()), stacktest.DstPort(client.Port()), stacktest.Flags(c.flags), stacktest.AckNum(8)))
		s := e.Snapshot()
		if got := s.Counters["tcp_express_foreign"]; got != c.looked || s.Express != 0 {
			t.Errorf("%s: %d foreign, want %d; %d express flows", c.to, got, c.looked, s.Express)
		}
	}
}

// The files are the engine's also when it cannot be made.
func TestExpressFilesAreTakenOver(t *testing.T) {
	stacktest.NoLeaks(t)
	loops := expressLoops(t)
	for _, c := range []struct {
		what           string
		mtu            int
		listener, diag bool
		ok             bool
	}{
		{"a wrong MTU", 1, true, true, false},
		{"no sock_diag socket", 1500, true, false, false},
		{"no listener", 1500, false, true, true},
	} {
		listener, diag := expressFiles(t)
		x := &stack.Express{Loops: loops}
		if c.listener {
			x.TCP4 = listener
		} else {
			listener.Close()
		}
		if c.diag {
			x.Diag = diag
		} else {
			diag.Close()
		}
		dev, _ := stacktest.NewPair(stacktest.AllOffloads)
		e, err := stack.New(stack.Config{Device: dev, MTU: c.mtu, ContainerMAC: stacktest.ContainerMAC, Express: x})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
		if e != nil {
			e.Close()
		}
	}
}

// What does not listen is refused.
func TestExpressNeedsAListener(t *testing.T) {
	stacktest.NoLeaks(t)
	loops := expressLoops(t)
	listener, diag := expressFiles(t)
	listener.Close()
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	dev, _ := stacktest.NewPair(stacktest.AllOffloads)
	if e, err := stack.New(stack.Config{
		Device: dev, ContainerMAC: stacktest.ContainerMAC, Express: &stack.Express{TCP4: null, Diag: diag, Loops: loops},
	}); err == nil {
		e.Close()
		t.Error("/dev/null was taken for a listener")
	}
}
