package drivertest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/tap"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

// World is what a driver needs to know of the namespaces.
type World struct {
	// Addresses and Plan say who has which address on the container's network.
	Addresses portdriver.Addresses
	Plan      netplan.Plan
	// ContainerPID is the process in the container's namespaces (join.OpenPID).
	ContainerPID int
	// StateDir is an empty directory.
	StateDir string
	// MTU and MAC are those of the container's interface.
	MTU int
	MAC [6]byte
	// Kind and Device are what stands behind the interface. The driver may give the
	// device to an engine.
	Kind   tap.Kind
	Device *os.File `json:"-"`

	harness string
}

// StartInside runs the harness's Inside in a process in the container's namespaces.
// The process ends when stop is called, which waits for it.
func (w World) StartInside(arg string) (stop func() error, err error) {
	target, err := join.OpenPID(w.ContainerPID)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	in, keep, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	p, err := target.Start(context.Background(), join.Command{
		Path: "/proc/self/exe",
		Env: environment(roleVariable+"="+roleInside, harnessVariable+"="+w.harness,
			argVariable+"="+arg),
		Files: []*os.File{in, os.Stderr, os.Stderr},
	})
	if err != nil {
		keep.Close()
		return nil, err
	}
	return func() error {
		keep.Close()
		defer p.Close()
		if status, err := p.Wait(); err != nil || status.ExitStatus() != 0 {
			return fmt.Errorf("the driver's part in the container: status %v, %w", status, err)
		}
		return nil
	}, nil
}

// interfaceName is the container's interface, farName the far end of its pair.
const interfaceName, farName = "tap0", "far0"

// makeWorld makes the container and its interface.
func makeWorld(tb testing.TB, h Harness) (World, *helper) {
	tb.Helper()
	c := startContainer(tb)
	plan := netplan.Default()
	w := World{
		Plan: plan,
		Addresses: portdriver.Addresses{
			Container4: plan.V4.Container, Gateway4: plan.V4.Gateway,
			Container6: plan.V6.Container, Gateway6: plan.V6.Gateway,
		},
		ContainerPID: c.cmd.Process.Pid, StateDir: tb.TempDir(), MTU: 65520, Kind: h.Device, harness: h.Name,
	}
	w.furnish(tb)
	return w, c
}

// furnish gives the container its interface.
func (w *World) furnish(tb testing.TB) {
	tb.Helper()
	target, err := join.OpenPID(w.ContainerPID)
	if err != nil {
		tb.Fatal(err)
	}
	defer target.Close()
	request := join.Request{TAP: interfaceName}
	if w.Kind == tap.Packet {
		request = join.Request{Packet: true}
	}
	s, err := target.Open(request)
	if join.NoTUN(err) {
		missing(tb, err.Error())
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { s.Close() })
	w.Device = s.TAP
	if w.Kind == tap.Packet {
		w.Device = s.Packet
		w.pair(tb, s)
	}
	p := w.Plan
	link, err := rtnl.Configure(s.Route, rtnl.Interface{
		Name: interfaceName, MTU: w.MTU,
		Addrs: []netip.Prefix{
			netip.PrefixFrom(p.V4.Container, p.V4.Prefix.Bits()), netip.PrefixFrom(p.V6.Container, p.V6.Prefix.Bits()),
		},
		Gateways: []netip.Addr{p.V4.Gateway, p.V6.Gateway},
	})
	if err != nil {
		tb.Fatal(err)
	}
	copy(w.MAC[:], link.MAC)
}

// pair makes the interface one end of a pair, whose other end the packet socket is on.
func (w *World) pair(tb testing.TB, s *join.Sockets) {
	tb.Helper()
	if err := rtnl.AddVeth(s.Route, interfaceName, farName, s.FarNetNS); err != nil {
		tb.Fatal(err)
	}
	index, err := rtnl.FarUp(s.FarRoute, farName, w.MTU)
	if err != nil {
		tb.Fatal(err)
	}
	if err := rtnl.BindPacket(s.Packet, index); err != nil {
		tb.Fatal(err)
	}
}

// missing ends a test for which the machine is not equipped. Where everything was
// set up that is a failure.
func missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}

// socket makes a server's socket in the container.
func (s *suite) socket(tb testing.TB, o socketOrder) *os.File {
	tb.Helper()
	_, files, err := s.container.call(o)
	if err != nil {
		tb.Fatalf("the container's %s socket on %s: %v", o.Network, o.Addr, err)
	}
	return files[0]
}

// listen makes a TCP server's socket in the container; backlog negative is the
// usual one.
func (s *suite) listen(tb testing.TB, addr netip.AddrPort, backlog int) *net.TCPListener {
	tb.Helper()
	f := s.socket(tb, socketOrder{Network: "tcp", Addr: addr, Backlog: backlog})
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// listenUDP makes a UDP server's socket in the container.
func (s *suite) listenUDP(tb testing.TB, addr netip.AddrPort) *net.UDPConn {
	tb.Helper()
	f := s.socket(tb, socketOrder{Network: "udp", Addr: addr})
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	u := c.(*net.UDPConn)
	if err := u.SetReadBuffer(4 << 20); err != nil {
		tb.Fatal(err)
	}
	return u
}

// second is another address of the host on its LAN.
var second4, second6 = netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8:1::7")

// makeLAN makes the remote namespace, and gives the host its second address.
func makeLAN(tb testing.TB) *nstest.Namespace {
	tb.Helper()
	remote := nstest.NewRouter(tb)
	for _, p := range []netip.Prefix{netip.PrefixFrom(second4, 24), netip.PrefixFrom(second6, 64)} {
		if err := nstest.AddAddr("v0", p); err != nil {
			tb.Fatal(err)
		}
	}
	// Our own fixed ports lie below those that the kernel gives to clients.
	if err := nstest.Sysctl("net/ipv4/ip_local_port_range", "32768 60999"); err != nil {
		tb.Fatal(err)
	}
	remote.Do(tb, func() error {
		// A stranger's address at the far side: any port is his to use.
		return nstest.Sysctl("net/ipv4/ip_unprivileged_port_start", "0")
	})
	return remote
}
