package stack_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/stacktest/guest"
	"github.com/postern-net/postern/stack/tap"
)

// What callers of slirp4netns expect: a TAP without vnet header, any address of the
// network, no name server if not wanted.

// echoes checks TCP both ways and datagrams of some sizes with echo servers on a host.
func echoes(t *testing.T, w *world, host netip.Addr) {
	t.Helper()
	l, addr := listen(t, host)
	go echo(l)
	conn := w.mustDial(t, "tcp", addr)
	sent := random(7, 2<<20)
	go func() { _, _ = conn.Write(sent) }() // the reader notices what is missing
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s: %d bytes did not come back whole: %v", host, len(sent), err)
	}
	c := w.mustDial(t, "udp", echoDatagrams(t, host))
	buf := make([]byte, 1<<16)
	for _, size := range []int{0, 1, 1472, 1473, 9000, 60000} {
		payload := random(byte(size), size)
		if _, err := c.Write(payload); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || !bytes.Equal(buf[:n], payload) {
			t.Fatalf("%s: %d bytes: %d came back, %v", host, size, n, err)
		}
	}
}

// TestPlainFrames: without offloads everything works in plain frames, on a line to a
// virtual machine also without its hardware address.
func TestPlainFrames(t *testing.T) {
	for _, mtu := range []int{1500, stack.MaxMTU} {
		plainFrames(t, tap.BareTAP, mtu, nil)
		plainFrames(t, tap.Seqpacket, mtu, func(c *stack.Config) {
			c.ContainerMAC, c.MaxFrame = [6]byte{}, mtu+14
		})
	}
}

func plainFrames(t *testing.T, kind tap.Kind, mtu int, change func(*stack.Config)) {
	t.Run(fmt.Sprintf("%s/mtu %d", kind, mtu), func(t *testing.T) {
		w := newWorld(t, kind, mtu, change)
		for _, host := range hosts {
			echoes(t, w, host)
		}
		for _, name := range []string{"drop_malformed", "drop_checksum", "drop_runt", "drop_oversized", "drop_unsent"} {
			if n := w.Snapshot().Counters[name]; n != 0 {
				t.Errorf("%s: %d", name, n)
			}
		}
	})
}

// TestOtherAddresses: the interface may have any addresses of the network instead of
// the plan's, and its SLAAC one beside.
func TestOtherAddresses(t *testing.T) {
	w := startWorld(t, tap.TAP, 1500, func(c *stack.Config) {
		c.Static = false
		c.DHCPFirst, c.DHCPLast = netip.MustParseAddr("10.0.2.15"), netip.MustParseAddr("10.0.2.30")
	})
	w.g.Do(t, func() error {
		return errors.Join(
			nstest.AddAddr(guest.Name, netip.MustParsePrefix("10.0.2.17/24")),
			nstest.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), netplan.Default().V4.Gateway, syscall.RTN_UNICAST))
	})
	echoes(t, w, host4)
	// IPv6 comes with the router's advertisement, the route too.
	stacktest.Eventually(t, "SLAAC", func() bool {
		conn, err := w.dialOnce(t, "udp", netip.AddrPortFrom(host6, 9))
		if err != nil {
			return false
		}
		defer conn.Close()
		from := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		return netplan.DefaultV6.Contains(from) && from != netplan.Default().V6.Container
	})
	echoes(t, w, host6)
}

// TestNoDNS: the name server's address is there, and nobody listens.
func TestNoDNS(t *testing.T) {
	w := newWorld(t, tap.TAP, 1500, func(c *stack.Config) { c.NoDNS = true })
	for _, f := range []netplan.Family{netplan.Default().V4, netplan.Default().V6} {
		at := netip.AddrPortFrom(f.Resolver, 53)
		if _, err := w.dial(t, "tcp", at); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("tcp %s: %v, want it refused", at, err)
		}
		c := w.mustDial(t, "udp", at)
		if _, err := c.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 512)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("udp %s: %v, want it refused", at, err)
		}
	}
}

// TestPoolIsChecked: a pool that no host could use is refused.
func TestPoolIsChecked(t *testing.T) {
	device, _ := stacktest.NewPair(stacktest.AllOffloads)
	a := netip.MustParseAddr
	if e, err := stack.New(stack.Config{Device: device, DHCPFirst: a("10.0.3.15"), DHCPLast: a("10.0.3.30")}); err == nil {
		e.Close()
		t.Error("a pool outside the network was taken")
	}
}

// dialOnce is dial for a connection that may fail and is closed by the caller.
func (w *world) dialOnce(t *testing.T, network string, to netip.AddrPort) (conn net.Conn, err error) {
	t.Helper()
	w.g.Do(t, func() error {
		conn, err = net.DialTimeout(network, to.String(), time.Second)
		return nil
	})
	return conn, err
}
