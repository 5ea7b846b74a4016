package netstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

var (
	// Addresses of the host, all on lo.
	udpHost4, udpHost6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")

	udpPlan = addressesOf(netplan.Default())
)

func addressesOf(p netplan.Plan) portdriver.Addresses {
	return portdriver.Addresses{
		Container4: p.V4.Container, Gateway4: p.V4.Gateway, Container6: p.V6.Container, Gateway6: p.V6.Gateway,
	}
}

var udpHostAddresses = sync.OnceValue(func() error {
	return errors.Join(nstest.AddAddr("lo", netip.PrefixFrom(udpHost4, 32)), nstest.AddAddr("lo", netip.PrefixFrom(udpHost6, 128)))
})

// udpWorld is a running engine between a container and the host, with a driver.
type udpWorld struct {
	udp *UDP
	g   *guest.Guest
}

func newUDPWorld(t testing.TB, kind tap.Kind, mtu int, change func(*UDPConfig)) *udpWorld {
	t.Helper()
	stacktest.NoLeaks(t)
	if err := udpHostAddresses(); err != nil {
		t.Fatal(err)
	}
	g := guest.New(t, kind, mtu)
	device, err := tap.New(g.Device, kind)
	if err != nil {
		t.Fatal(err)
	}
	e, err := stack.New(stack.Config{Device: device, MTU: mtu, ContainerMAC: g.MAC, Static: true})
	if err != nil {
		t.Fatal(err)
	}
	c := UDPConfig{Engine: e, Routes: udpPlan.Routes}
	if change != nil {
		change(&c)
	}
	udp, err := NewUDP(c)
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
		udp.Close()
	})
	g.Configure(t, netplan.Default())
	awaitIPv6(t, g)
	return &udpWorld{udp, g}
}

// awaitIPv6 waits until the container's kernel takes packets to its IPv6 address,
// which is some time after the address was accepted: a worker adds the local route
// (addrconf_dad_work).
func awaitIPv6(t testing.TB, g *guest.Guest) {
	t.Helper()
	local := fmt.Sprintf("%x 80 ", udpPlan.Container6.As16())
	stacktest.Eventually(t, "the container's IPv6 address", func() (ok bool) {
		g.Do(t, func() error {
			routes, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
			ok = bytes.Contains(routes, []byte(local))
			return err
		})
		return ok
	})
}

// listen opens a server's socket in the container.
func (w *udpWorld) listen(t testing.TB, at netip.AddrPort) udpSocket {
	t.Helper()
	var conn *net.UDPConn
	w.g.Do(t, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return adoptUDP(t, conn)
}

// publish opens a port of the host that leads to a target.
func (w *udpWorld) publish(t testing.TB, rule int, at netip.Addr, target netip.AddrPort) netip.AddrPort {
	t.Helper()
	l := udpListener(t, rule, at, target)
	if err := w.udp.Open(l); err != nil {
		t.Fatal(err)
	}
	return l.Bound
}

func udpListener(t testing.TB, rule int, at netip.Addr, target netip.AddrPort) portdriver.Listener {
	t.Helper()
	s := listenUDP(t, netip.AddrPortFrom(at, 0))
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	return portdriver.Listener{Rule: rule, Network: portdriver.NetUDP, Bound: s.addr, Target: target, File: f}
}
