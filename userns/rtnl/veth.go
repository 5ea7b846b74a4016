package rtnl

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER (linux/veth.h): what follows describes the other
// end like an interface of its own.
const vethInfoPeer = 1

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE (linux/if_link.h).
const addrGenModeNone = 1

// AddVeth makes a veth pair (veth(4)): near in the socket's network namespace, far
// in farNS. Both are down. EEXIST when a name is taken.
func AddVeth(route *os.File, near, far string, farNS *os.File) error {
	op := fmt.Sprintf("add veth pair %s and %s", near, far)
	rc, err := farNS.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var xerr error
	// The kernel looks the number up in our descriptor table, during the send.
	if err := rc.Control(func(fd uintptr) {
		xerr = exchange(route, op, vethMessage(near, far, uint32(fd)), nil)
	}); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if errors.Is(xerr, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: the kernel has no veth: ask for \"modprobe veth\"", xerr)
	}
	return xerr
}

func vethMessage(near, far string, farNS uint32) *message {
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHeader(0, 0, 0))
	m.attrString(unix.IFLA_IFNAME, near)
	m.nest(unix.IFLA_LINKINFO, func() {
		m.attrString(unix.IFLA_INFO_KIND, "veth")
		m.nest(unix.IFLA_INFO_DATA, func() {
			m.nest(vethInfoPeer, func() {
				m.b = append(m.b, linkHeader(0, 0, 0)...)
				m.attrString(unix.IFLA_IFNAME, far)
				m.attrUint32(unix.IFLA_NET_NS_FD, farNS)
			})
		})
	})
	return m
}

// FarUp prepares the far end of a pair for a packet socket and sets it up. It
// never speaks by itself: no ARP (IFF_NOARP), no IPv6 address of its own
// (addr_gen_mode none). It returns the interface's index.
func FarUp(farRoute *os.File, name string, mtu int) (index int, err error) {
	op := fmt.Sprintf("prepare %s for a packet socket", name)
	quiet := func(m *message) {
		m.attrUint32(unix.IFLA_MTU, uint32(mtu))
		m.nest(unix.IFLA_AF_SPEC, func() {
			m.nest(unix.AF_INET6, func() {
				m.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{addrGenModeNone})
			})
		})
	}
	err = change(farRoute, op, name, unix.IFF_NOARP, quiet)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		// A kernel without IPv6 has nothing to keep quiet.
		err = change(farRoute, op, name, unix.IFF_NOARP, func(m *message) { m.attrUint32(unix.IFLA_MTU, uint32(mtu)) })
	}
	if err != nil {
		return 0, err
	}
	if err := Up(farRoute, name); err != nil {
		return 0, err
	}
	l, err := Find(farRoute, name)
	return l.Index, err
}

// BindPacket makes an AF_PACKET socket receive and send every protocol on the
// interface with that index in the socket's network namespace (packet(7)).
func BindPacket(packet *os.File, index int) error {
	op := fmt.Sprintf("bind the packet socket to interface %d", index)
	rc, err := packet.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var berr error
	if err := rc.Control(func(fd uintptr) {
		berr = unix.Bind(int(fd), &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index})
	}); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	if berr != nil {
		return fmt.Errorf("%s: %w", op, berr)
	}
	return nil
}

// networkOrder turns a number into the one whose bytes in memory are in network
// order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	b[0], b[1] = byte(v>>8), byte(v)
	return host.Uint16(b[:])
}
