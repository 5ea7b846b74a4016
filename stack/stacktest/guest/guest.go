// Package guest makes what a container has of the network, for tests that need
// a kernel on the far side: a network namespace with one interface, and the
// device behind that interface: a TAP, a packet socket, or a seqpacket socket whose other
// side brings the frames of a TAP, as a virtual machine does (Pump).
//
// The test binary must run inside namespaces of its own (nstest.Main), which
// then play the host.
package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// Name is the interface's name in the guest.
const Name = "tap0"

// farName is the name of the other end of the pair that a packet socket needs.
const farName = "far0"

// Kinds are the kinds of device with offloads, to run a test over each.
var Kinds = []tap.Kind{tap.TAP, tap.Packet}

// Guest is a network namespace with an interface.
type Guest struct {
	*nstest.Namespace
	// Device is what the engine gets; tap.New takes it over.
	Device *os.File
	Kind   tap.Kind
	// MAC is the interface's Ethernet address.
	MAC [6]byte
}

// New makes a guest whose interface is up and has no address.
func New(tb testing.TB, kind tap.Kind, mtu int) *Guest {
	tb.Helper()
	g := &Guest{Namespace: nstest.New(tb), Kind: kind}
	if kind != tap.Packet {
		g.Do(tb, g.openTAP)
	} else {
		g.openPacket(tb, mtu)
	}
	if tb.Skipped() {
		return nil
	}
	if g.Device == nil {
		missing(tb, "this test needs /dev/net/tun")
	}
	tb.Cleanup(func() { g.Device.Close() }) // harmless once it is taken over
	if kind == tap.Seqpacket {
		g.Device = cable(tb, g.Device)
	}
	g.Do(tb, func() error {
		if err := setMTU(Name, mtu); err != nil {
			return err
		}
		if err := nstest.LinkUp(Name); err != nil {
			return err
		}
		i, err := net.InterfaceByName(Name)
		if err != nil {
			return err
		}
		copy(g.MAC[:], i.HardwareAddr)
		return nil
	})
	return g
}

// missing ends a test for which the machine is not equipped. Where everything
// was set up that is a failure.
func missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("CI") == "true" {
		tb.Fatal(what)
	}
	tb.Skip(what)
}

// openTAP leaves Device nil where the device node is missing or closed to us.
func (g *Guest) openTAP() error {
	// tun(4): the file belongs to the network namespace of the thread that opens it.
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open /dev/net/tun: %w", err)
	}
	ifr, err := unix.NewIfreq(Name)
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if g.Kind == tap.BareTAP || g.Kind == tap.Seqpacket {
		flags &^= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return fmt.Errorf("make the TAP: %w", err)
	}
	g.Device = os.NewFile(uintptr(fd), Name)
	return nil
}

// openPacket makes a pair of interfaces, one in the guest, the other in a
// namespace with nothing but the packet socket.
func (g *Guest) openPacket(tb testing.TB, mtu int) {
	tb.Helper()
	far := nstest.New(tb)
	g.Do(tb, func() error { return nstest.AddVeth(Name, farName, far.File) })
	far.Do(tb, func() error {
		if err := nstest.Sysctl("net/ipv6/conf/"+farName+"/disable_ipv6", "1"); err != nil {
			return err
		}
		if err := setMTU(farName, mtu); err != nil {
			return err
		}
		if err := setFlags(farName, unix.IFF_UP|unix.IFF_NOARP|unix.IFF_PROMISC); err != nil {
			return err
		}
		fd, err := OpenPacket(farName)
		if err == nil {
			g.Device = os.NewFile(uintptr(fd), farName)
		}
		return err
	})
}

// OpenPacket returns a packet socket that is bound to an interface of the
// thread's namespace.
func OpenPacket(name string) (fd int, err error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("make a packet socket: %w", err)
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: i.Index, Protocol: all}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind a packet socket to %s: %w", name, err)
	}
	return fd, nil
}

// Configure gives the interface the container's addresses and default routes, and
// waits until it takes packets for them.
func (g *Guest) Configure(tb testing.TB, plan netplan.Plan) {
	tb.Helper()
	g.Do(tb, func() error {
		for _, f := range []netplan.Family{plan.V4, plan.V6} {
			if !f.On() {
				continue
			}
			if err := nstest.AddAddr(Name, netip.PrefixFrom(f.Container, f.Prefix.Bits())); err != nil {
				return err
			}
			unspecified := netip.IPv4Unspecified()
			if f.Container.Is6() {
				unspecified = netip.IPv6Unspecified()
			}
			if err := nstest.AddRoute(netip.PrefixFrom(unspecified, 0), f.Gateway, unix.RTN_UNICAST); err != nil {
				return err
			}
		}
		return nil
	})
	if plan.V6.On() {
		g.awaitLocal(tb, plan.V6.Container)
	}
}

// awaitLocal waits for the route that delivers packets for an IPv6 address. The
// kernel adds it from a work queue, which on a machine that makes and deletes
// network namespaces all the time may take it a second.
func (g *Guest) awaitLocal(tb testing.TB, a netip.Addr) {
	tb.Helper()
	route := fmt.Sprintf("%x 80 ", a.As16()) // destination and prefix length, 128
	stacktest.Eventually(tb, fmt.Sprintf("%s to take packets for %s", Name, a), func() (ready bool) {
		g.Do(tb, func() error {
			b, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
			ready = bytes.Contains(b, []byte(route))
			return err
		})
		return ready
	})
}

// Down takes the interface down.
func (g *Guest) Down(tb testing.TB) {
	tb.Helper()
	g.Do(tb, func() error { return setFlags(Name, 0) })
}

// Up takes the interface up again.
func (g *Guest) Up(tb testing.TB) {
	tb.Helper()
	g.Do(tb, func() error { return nstest.LinkUp(Name) })
}

func setMTU(name string, mtu int) error {
	return ioctl(name, unix.SIOCSIFMTU, func(ifr *unix.Ifreq) { ifr.SetUint32(uint32(mtu)) })
}

func setFlags(name string, flags uint16) error {
	return ioctl(name, unix.SIOCSIFFLAGS, func(ifr *unix.Ifreq) { ifr.SetUint16(flags) })
}

// ioctl changes an interface of the thread's namespace (netdevice(7)).
func ioctl(name string, request uint, set func(*unix.Ifreq)) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	set(ifr)
	if err := unix.IoctlIfreq(fd, request, ifr); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}
